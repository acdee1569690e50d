"""Two processes under torchrun train as one does, stop together, and lose nothing if one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from training_fixtures import losses, tiny_config, write_tiny_data

from edgemt.errors import UsageError
from edgemt.training.distributed import World
from edgemt.training.loop import Run
from edgemt.training.state import STATE

STEPS = 12
CONFIG = """
precision = "fp32"
evaluate_sentences = 2
model = { d_model = 16, encoder_layers = 1, decoder_layers = 1, heads = 2, ffn = 32 }
data = { batch_tokens = 300, accumulate = 4 }
optimizer = { rate = 3e-3 }
schedule = { steps = STEPS, warmup = 5, cooldown = 0 }
every = { save_minutes = 0, save_steps = 3 }
"""
IN_CONFIG = {"precision": "fp32", "evaluate_sentences": 2, "data": {"batch_tokens": 300, "accumulate": 4}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tiny_config(STEPS, **IN_CONFIG), data, tmp_path_factory.mktemp("alone"))
    run.train()
    return run


def two_processes(
    data: Path, directory: Path, steps: int, meanwhile: Callable[[subprocess.Popen[str]], None] | None = None
) -> tuple[int, str]:
    """Exit code and stderr of `edgemt train` under torchrun; `meanwhile` may interfere."""
    config = directory.with_suffix(".toml")
    config.write_text(CONFIG.replace("STEPS", str(steps)))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "edgemt.cli", "train", str(config), "--data", str(data), "--state", str(directory)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            if meanwhile:
                meanwhile(process)
            _, said = process.communicate(timeout=120)
        except BaseException:  # a run that hangs fails the test, and does not hang it
            process.terminate()  # torchrun ends its workers
            raise
    return process.returncode, said


def worker(process: subprocess.Popen[str], rank: int) -> int:
    """The process of that rank among torchrun's children."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no process of rank {rank} in {children}")


def wait_for_a_state(process: subprocess.Popen[str], directory: Path) -> None:
    until = time.monotonic() + 90
    while not (directory / STATE).exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)


def test_two_processes_have_the_losses_of_one(data: Path, alone: Run, tmp_path: Path) -> None:
    code, said = two_processes(data, tmp_path / "run", STEPS)
    assert code == 0, said
    expected = losses(alone.directory)
    assert len(expected) == STEPS  # with dropout, of 0.1
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-5)
    again = Run(tiny_config(STEPS, **IN_CONFIG), data, tmp_path / "run")  # one process reads the state of two
    assert again.step == STEPS and again.scores == alone.scores


def test_a_signal_to_one_stops_all_with_their_state(data: Path, alone: Run, tmp_path: Path) -> None:
    def interfere(process: subprocess.Popen[str]) -> None:
        wait_for_a_state(process, tmp_path / "run")
        os.kill(worker(process, 1), signal.SIGTERM)

    code, said = two_processes(data, tmp_path / "run", 100_000, interfere)
    assert code == 0, said
    rest = Run(tiny_config(100_000, **IN_CONFIG), data, tmp_path / "run")
    assert rest.step == max(losses(tmp_path / "run")) > 0


def test_a_process_that_is_killed_ends_the_others_and_loses_nothing(
    data: Path, alone: Run, tmp_path: Path
) -> None:
    def interfere(process: subprocess.Popen[str]) -> None:
        wait_for_a_state(process, tmp_path / "run")
        os.kill(worker(process, 1), signal.SIGKILL)

    code, said = two_processes(data, tmp_path / "run", 100_000, interfere)
    assert code != 0
    assert "process 0: another process of this run ended; start the same command again" in said
    assert "[rank0]" not in said  # no traceback of ours
    rest = Run(tiny_config(100_000, **IN_CONFIG), data, tmp_path / "run")
    assert rest.step > 0 and rest.step % 3 == 0
    seen = {step: loss for step, loss in losses(tmp_path / "run").items() if step <= STEPS}
    expected = losses(alone.directory)
    assert seen == pytest.approx({step: expected[step] for step in seen}, rel=1e-5)


def test_micro_batches_must_be_shared_out_evenly(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"accumulate = 4 cannot be shared by 3 processes: .* multiple of 3"):
        Run(tiny_config(STEPS, **IN_CONFIG), data, tmp_path, world=World("cpu", 0, 3))
