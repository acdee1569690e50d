"""A run that was stopped, or killed, goes on exactly as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_fixtures import losses, stop_after, tiny_config, write_tiny_data

from edgemt.errors import EdgemtError, UsageError
from edgemt.training.loop import Run
from edgemt.training.state import STATE

STEPS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tiny_config(STEPS), data, tmp_path_factory.mktemp("whole"))
    run.train()
    return run


def same_weights(one: Run, other: Run) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    averages = zip(one.average.weights.values(), other.average.weights.values(), strict=True)
    return all(torch.equal(a, b) for a, b in [*pairs, *averages])


def test_a_stopped_run_goes_on_bit_for_bit(data: Path, uninterrupted: Run, tmp_path: Path) -> None:
    for step in (7, 41):  # the second stop lies in a later epoch
        part = Run(tiny_config(STEPS), data, tmp_path)
        stop_after(part, step)
        part.train()
    rest = Run(tiny_config(STEPS), data, tmp_path)
    assert rest.epoch > 0
    rest.train()
    assert losses(tmp_path) == losses(uninterrupted.directory)
    assert same_weights(rest, uninterrupted)


def test_muon_resumes_bit_for_bit(data: Path, tmp_path: Path) -> None:
    config = tiny_config(12, optimizer={"name": "muon"})
    whole = Run(config, data, tmp_path / "whole")
    whole.train()
    part = Run(config, data, tmp_path / "part")
    stop_after(part, 5)
    part.train()
    rest = Run(config, data, tmp_path / "part")
    rest.train()
    assert same_weights(whole, rest)


CONFIG = """
evaluate_sentences = 0
model = { d_model = 16, encoder_layers = 1, decoder_layers = 1, heads = 2, ffn = 32 }
data = { batch_tokens = 1000 }
optimizer = { rate = 3e-3 }
schedule = { steps = 100000, warmup = 5, cooldown = 0 }
every = { save_minutes = 0, save_steps = 1 }
"""
# The scale falls from an overflow at the start, and grows again every few steps.
SCALED = {
    "precision": "fp16-o1",
    "data": {"batch_tokens": 400, "accumulate": 2},
    "loss_scale": {"initial": 2.0**24, "interval": 4},
}


@pytest.mark.parametrize("changes", [{}, SCALED], ids=["bf16", "fp16-o1 accumulated"])
def test_a_killed_run_goes_on_bit_for_bit(
    data: Path, uninterrupted: Run, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole, steps = uninterrupted, STEPS
    if changes:
        steps = 30
        whole = Run(tiny_config(steps, **changes), data, tmp_path / "whole")
        whole.train()
        assert len({scale for _, scale in whole.stepper.scales}) > 2 and whole.stepper.skipped > 0
    config, directory = tmp_path / "train.toml", tmp_path / "run"
    config.write_text(CONFIG)
    settings = [f"--set=precision={changes.get('precision', 'bf16')}"]
    for section in ("data", "loss_scale"):
        settings += [f"--set={section}.{key}={value}" for key, value in changes.get(section, {}).items()]
    command = [
        *(sys.executable, "-m", "edgemt.cli", "train", str(config), *settings),
        *("--data", str(data), "--state", str(directory)),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not (directory / STATE).exists() or len(losses(directory)) < 5:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    rest = Run(tiny_config(steps, **changes), data, directory)
    assert 0 < rest.step < steps
    rest.train()
    assert losses(directory) == losses(whole.directory)
    assert rest.stepper.scales == whole.stepper.scales
    assert same_weights(rest, whole)


def test_a_torn_state_falls_back_to_the_one_before(data: Path, tmp_path: Path) -> None:
    for step in (3, 6):
        part = Run(tiny_config(STEPS), data, tmp_path)
        stop_after(part, step)
        part.train()
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:5000])
    assert Run(tiny_config(STEPS), data, tmp_path).step == 3
    (tmp_path / "state.previous.pt").write_bytes(b"")
    with pytest.raises(EdgemtError, match="no state in"):
        Run(tiny_config(STEPS), data, tmp_path)


def test_a_changed_model_is_refused(data: Path, uninterrupted: Run) -> None:
    with pytest.raises(UsageError, match=r"seed = 2 differs from the run in .*, which has 1"):
        Run(tiny_config(STEPS, seed=2), data, uninterrupted.directory)


def test_cooldown_now_ends_the_run(data: Path, tmp_path: Path) -> None:
    config = tiny_config(1000, schedule={"steps": 1000, "warmup": 2, "cooldown": 4})
    part = Run(config, data, tmp_path)
    stop_after(part, 5)
    part.train()
    rest = Run(config, data, tmp_path)
    rest.cool_down_now()
    rest.train()
    assert rest.step == 9
    assert rest.optimizers[0].param_groups[0]["lr"] == 0
