"""`edgemt train compare`: modes in processes of their own; what fails is a row, what is done is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training_fixtures import tiny_config, write_tiny_data
from transformers import AutoConfig, AutoModelForCausalLM

from edgemt.cli import main
from edgemt.errors import UsageError
from edgemt.training.compare import report, run, table
from edgemt.training.compare.page import page
from edgemt.training.compare.worker import FAILURE, work
from edgemt.training.config import load_config
from edgemt.training.families.causal import KINDS, SHAPE
from edgemt.training.log import LOG, read_log

CONFIG = """
evaluate_sentences = 2
[model]
d_model = 16
encoder_layers = 1
decoder_layers = 1
heads = 2
ffn = 32
[data]
batch_tokens = 1000
[optimizer]
rate = 3e-3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    write_tiny_data(folder / "data")
    (folder / "tiny.toml").write_text(CONFIG)
    return folder


def command(folder: Path, modes: str, *options: str) -> list[str]:
    out = ["--data", str(folder / "data"), "--out", str(folder / "out"), "--modes", modes]
    return ["train", "compare", str(folder / "tiny.toml"), *out, *options]


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """FP32 against pure FP16, which breaks within its first steps; written as a user has it written."""
    clocked = ["--timing-rounds", "1", "--timing-steps", "3"]
    assert main(command(folder, "fp32,fp16-pure", "--steps", "45", *clocked)) == 0
    text = (folder / "out" / "report.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_mode_that_diverges_is_a_row_with_its_culprit(found: dict[str, Any]) -> None:
    fp32, pure = found["modes"]
    assert (fp32["status"], fp32["steps"], fp32["skipped_steps"]) == ("finished", 45, 0)
    assert set(fp32["scores"]) == {"clinical zh-en", "clinical en-zh"} and fp32["scored_at"] == 45
    assert pure["status"] == "diverged" and pure["skipped_steps"] == 30
    assert pure["culprit"]["step"] == pure["steps"] - 29
    assert "not been finite for 30 steps" in pure["reason"] and pure["culprit"]["dtype"] == "float16"


def test_time_and_memory_of_both_are_measured(found: dict[str, Any]) -> None:
    fp32, pure = found["modes"]
    assert fp32["ratio"] is None and pure["ratio"]["low"] <= pure["ratio"]["ratio"] <= pure["ratio"]["high"]
    for mode in (fp32, pure):
        assert 0 < mode["step_ms"]["p10"] <= mode["step_ms"]["median"] <= mode["step_ms"]["p90"]
        assert mode["step_ms"]["steps"] == 3
        assert 100 < mode["before_mb"] <= mode["peak_mb"]
    assert found["device"]["kind"] == "cpu" and found["device"]["name"]


def test_the_curves_have_every_step_and_stay_strict_json(found: dict[str, Any]) -> None:
    for mode in found["modes"]:
        assert mode["curve"]["step"] == list(range(1, mode["steps"] + 1))
        assert len(mode["curve"]["loss"]) == len(mode["curve"]["scale"]) == mode["steps"]
    assert found["modes"][0]["curve"]["loss"][-1] < found["modes"][0]["curve"]["loss"][0]
    assert found["modes"][1]["curve"]["loss"][-1] is None


def test_every_key_is_documented(found: dict[str, Any]) -> None:
    described = report.__doc__ or ""
    for keys in (found, found["settings"], found["modes"][0]):
        assert [key for key in keys if not re.search(rf"\b{key}\b", described)] == []


def test_a_cpu_is_never_called_a_gpu(found: dict[str, Any]) -> None:
    text = table.markdown(found)
    assert (
        text.startswith("CPU: ") and "Measured on a CPU. It says nothing of speed or memory on a GPU" in text
    )
    assert "Measured on a CPU" in page(found)
    gpu = found | {"device": {"kind": "cuda", "name": "Some GPU", "threads": 1}}
    assert table.markdown(gpu).startswith("GPU: Some GPU\n") and "CPU" not in table.title(gpu)


def test_the_table_is_a_table(found: dict[str, Any]) -> None:
    lines = [line for line in table.markdown(found).splitlines() if line.startswith("|")]
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| fp32 | finished |") and "| fp16-pure | diverged at step" in lines[3]
    assert "0 of 45" in lines[2] and f"30 of {found['modes'][1]['steps']}" in lines[3]


def test_the_page_needs_nothing_else(folder: Path, found: dict[str, Any]) -> None:
    text = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 3  # nothing was scaled
    assert not re.search(r"""(src|href)=["'](?!#)""", text) and "<script" not in text
    assert str(folder) not in text
    assert str(folder) not in (folder / "out" / "report.json").read_text(encoding="utf-8")


def test_what_is_done_is_not_done_again(folder: Path, found: dict[str, Any]) -> None:
    out = folder / "out"
    results = {path: path.stat().st_mtime_ns for path in out.rglob(run.RESULT)}
    clocked = ["--timing-rounds", "1", "--timing-steps", "3"]
    assert len(results) == 4
    assert main(command(folder, "fp32,fp16-pure", "--steps", "45", *clocked)) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob(run.RESULT)} == results
    again = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert again["modes"] == found["modes"]


def test_another_configuration_is_another_result(folder: Path) -> None:
    def job(**changes: Any) -> run.Job:
        return run.Job(tiny_config(5, **changes), folder / "data", None, folder, 1)

    same = run.fingerprint(job(), "fp32", None)
    assert run.fingerprint(job(), "fp32", None) == same
    others = [
        run.fingerprint(job(seed=2), "fp32", None),
        run.fingerprint(job(), "bf16", None),
        run.fingerprint(job(), "fp32", 5),
    ]
    assert len({same, *others}) == 4


def test_a_mode_without_memory_is_a_row(folder: Path, tmp_path: Path) -> None:
    """Asked for 640 TB, torch refuses at once."""
    config = tiny_config(5, model={"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "ffn": 10**13})
    specification = {"data": str(folder / "data"), "init": None, "directory": str(tmp_path), "threads": 1}
    values = config.model_dump(mode="json", exclude_unset=True)
    code = work({**specification, "config": values, "clock": None})
    failure = run.failure(tmp_path, code)
    assert code == 1 and failure is not None and failure["kind"] == "out of memory"
    job = run.Job(config, folder / "data", None, tmp_path, 1)
    lost = {"log": read_log(tmp_path / LOG), "failure": failure}
    data = report.report(job, {"fp32": lost}, {"fp32": []}, 3, None)
    assert data["modes"][0]["status"] == "out of memory"
    assert "| fp32 | out of memory |" in table.markdown(data) and "allocate memory" in page(data)
    assert (tmp_path / FAILURE).exists()


def lines(losses: list[float | None], seconds: float, first: int = 1) -> dict[str, Any]:
    log = [
        {"step": step, "loss": loss, "gradient_norm": loss, "seconds": seconds * step, "tokens": 100 * step}
        for step, loss in enumerate(losses, first)
    ]
    return {"log": log, "failure": None}


def test_the_ratio_is_of_the_batches_that_both_have_taken() -> None:
    base = report.clock([lines([1.0] * 10, 0.1), lines([1.0] * 10, 0.1)])
    assert list(base) == list(range(run.WARM_UP + 1, 11))
    rounds = [lines([1.0] * 5 + [None] + [1.0] * 4, 0.05)] * 2
    times = report.clock(rounds)
    assert 6 not in times and set(times) < set(base)
    found = report.speed(rounds, times, base)
    assert found["ratio"]["ratio"] == pytest.approx(0.5)
    assert found["tokens_per_second"] == round(600 / (0.05 * (4 + 5 + 7 + 8 + 9 + 10)))


def test_a_mode_that_never_took_a_step_has_no_time() -> None:
    rounds = [lines([None] * 10, 0.05)]
    assert report.clock(rounds) == {}
    assert report.speed(rounds, {}, {4: [1.0]})["step_ms"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--modes", "fp32,fp8"], "choose from fp32, bf16, fp16-o1, fp16-pure"),
        (["--steps", "0", "--timing-rounds", "0"], "nothing to compare"),
        (["--steps", "-3"], "cannot be negative"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--device", "cuda"], "no GPU"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(
    folder: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(folder, "fp32", "--out", str(tmp_path), *options)
    assert main(words) == UsageError.exit_code
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1] and said[-1].startswith("edgemt train")


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    words = command(folder, "fp32", "--out", str(tmp_path), "--steps", "400", "--timing-rounds", "0")
    start = [sys.executable, "-m", "edgemt.cli", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(start, env=environment, stderr=subprocess.PIPE) as process:
        while not [line for log in tmp_path.rglob(LOG) for line in read_log(log) if line["step"] > 10]:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    (log,) = tmp_path.rglob(LOG)
    stopped_at = read_log(log)[-1]["step"]
    assert 10 < stopped_at < 400 and not (tmp_path / "report.json").exists()
    subprocess.run(start, env=environment, check=True, capture_output=True)
    steps = [line["step"] for line in read_log(log) if "event" not in line]
    assert steps == list(range(1, 401)) and (tmp_path / "report.json").exists()


def test_the_gpu_configurations_are_what_they_say() -> None:
    """The full shape has the 1.79 billion weights of HY-MT1.5-1.8B; both files have only keys that exist."""
    folder = Path(__file__).parents[2] / "benchmarks" / "training"
    config = load_config(folder / "hy-1.8b.toml")
    values = {theirs: getattr(config.causal, ours) for ours, theirs in SHAPE.items() if ours != "kind"}
    kind = config.causal.kind
    with torch.device("meta"):  # the shape without its 7 GB
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **values, **KINDS[kind](config.causal))
        )
    assert sum(p.numel() for p in model.parameters()) == 1_791_080_448
    assert (config.device, config.ema_decay) == ("cuda", 0)
    assert load_config(folder / "student.toml").schedule.steps == 3000
