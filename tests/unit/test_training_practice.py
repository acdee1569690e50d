"""Accumulation, recomputed activations, compilation, schedules, checkpoints kept and averaged, patience."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from training_fixtures import losses, stop_after, tiny_config, write_tiny_data

from edgemt.cli import main
from edgemt.training.config import Keep, Schedule
from edgemt.training.keep import CHECKPOINTS, Kept
from edgemt.training.log import LOG, read_log
from edgemt.training.loop import FINISHED, Run
from edgemt.training.optimizers import rate_factor

SHAPE = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "ffn": 32}
COSINE = 0.5 + 0.5 * math.cos(math.pi * 8 / 9)
WITHOUT_DROPOUT = {**SHAPE, "dropout": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("training") / "data")


def test_accumulated_batches_are_one_large_batch(data: Path, tmp_path: Path) -> None:
    """Loss and gradient of the first step: the mean over the tokens of all its micro-batches."""
    config = tiny_config(
        1, precision="fp32", model=WITHOUT_DROPOUT, data={"batch_tokens": 400, "accumulate": 5}, ema_decay=0
    )
    run = Run(config, data, tmp_path)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            parameter.copy_(before[name])
    run.batches.epoch = run.batches.position = 0
    chosen = np.concatenate(run.batches.take(5))
    batch = run.examples.batch(chosen)
    loss = run.family.summed_loss(run.model, batch) / batch.target_tokens
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in run.parameters if p.grad is not None])
    (line,) = (line for line in read_log(tmp_path / LOG) if "loss" in line)
    assert line["tokens"] == batch.target_tokens and len(chosen) > 20
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert line["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_recomputed_activations_change_nothing(data: Path, tmp_path: Path) -> None:
    for name in ("kept", "recomputed"):
        config = tiny_config(6, precision="fp32", gradient_checkpointing=name == "recomputed")
        run = Run(config, data, tmp_path / name)
        run.train()
    assert run.model.is_gradient_checkpointing
    assert losses(tmp_path / "recomputed") == pytest.approx(losses(tmp_path / "kept"), rel=1e-6)


@pytest.mark.slow
def test_a_compiled_model_trains_alike(data: Path, tmp_path: Path) -> None:
    for name in ("eager", "compiled"):
        config = tiny_config(4, precision="fp32", model=WITHOUT_DROPOUT, compile=name == "compiled")
        Run(config, data, tmp_path / name).train()
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [  # at steps 5, 10, 55, 90, 95, 100 of 100
        ("constant", [0.5, 1, 1, 1, 0.5, 0]),
        ("linear", [0.5, 1, 0.5, 1 / 9, 0.5 / 9, 0]),
        ("cosine", [0.5, 1, 0.5, COSINE, 0.5 * COSINE, 0]),
        ("inverse-sqrt", [0.5, 1, (10 / 55) ** 0.5, (1 / 9) ** 0.5, 0.5 * (1 / 9) ** 0.5, 0]),
    ],
)  # fmt: skip
def test_the_rate_rises_then_falls(kind: Any, expected: list[float]) -> None:
    schedule = Schedule(kind=kind, steps=100, warmup=10, cooldown=10)
    rates = [rate_factor(step, schedule, cooldown_from=90) for step in (5, 10, 55, 90, 95, 100)]
    assert rates == pytest.approx(expected)


def test_without_an_average_the_weights_are_the_last_ones(data: Path, tmp_path: Path) -> None:
    run = Run(tiny_config(4, ema_decay=0), data, tmp_path / "run")
    run.train()
    assert not run.average.weights
    run.write_checkpoint(tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(written["model.shared.weight"], run.model.get_parameter("model.shared.weight"))
    assert Run(tiny_config(4, ema_decay=0), data, tmp_path / "run").step == 4


def test_it_stops_when_dev_gains_nothing_and_keeps_checkpoints(data: Path, tmp_path: Path) -> None:
    """At this rate nothing is learnt: the first evaluation is a gain, the next two are not."""
    config = tiny_config(
        100,
        optimizer={"rate": 1e-9},
        evaluate_sentences=2,
        every={"evaluate_minutes": 0, "evaluate_steps": 3},
        keep={"last": 2, "patience": 2},
    )
    run = Run(config, data, tmp_path)
    run.train()
    assert run.step == 9 and run.finished and (tmp_path / FINISHED).exists()
    assert {folder.name for folder in (tmp_path / CHECKPOINTS).iterdir()} == {"step-6", "step-9"}
    transformers.MarianMTModel.from_pretrained(tmp_path / CHECKPOINTS / "step-6")
    again = Run(config, data, tmp_path)
    again.train()
    assert again.step == 9  # it has ended


def test_a_resumed_run_has_the_same_patience(data: Path, tmp_path: Path) -> None:
    config = tiny_config(
        100,
        optimizer={"rate": 1e-9},
        evaluate_sentences=2,
        every={"evaluate_minutes": 0, "evaluate_steps": 3},
        keep={"patience": 2},
    )
    part = Run(config, data, tmp_path)
    stop_after(part, 7)
    part.train()
    rest = Run(config, data, tmp_path)
    rest.train()
    assert (rest.step, rest.scored, rest.without_gain) == (9, 9, 2)


def test_the_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    kept = Kept(tmp_path, Keep(last=1, best=2))

    def write(bleu: float) -> Any:
        def to(folder: Path) -> None:
            folder.mkdir()
            (folder / "edgemt.json").write_text(json.dumps({"dev_bleu": bleu}))

        return to

    there = []
    for step, bleu in ((10, 5.0), (20, 9.0), (30, 7.0), (40, 6.0), (50, 3.0), (60, 8.0)):
        kept.add(step, bleu, write(bleu))
        there.append(sorted(int(folder.name.removeprefix("step-")) for folder in tmp_path.iterdir()))
    assert there == [[10], [10, 20], [20, 30], [20, 30, 40], [20, 30, 50], [20, 60]]
    assert kept.best() == tmp_path / "step-20"


def test_the_best_kept_checkpoint_is_the_result(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "train.toml"
    config.write_text(
        "evaluate_sentences = 2\nmodel = { d_model = 16, encoder_layers = 1, decoder_layers = 1, heads = 2, "
        "ffn = 32 }\nevery = { evaluate_steps = 2 }\noptimizer = { rate = 3e-3 }\n"
        "schedule = { steps = 6, warmup = 2, cooldown = 0 }\n"
    )
    state, out = tmp_path / "state", tmp_path / "out"
    arguments = ["train", str(config), "--set", "keep.best=3", "--data", str(data), "--state", str(state)]
    assert main([*arguments, "--out", str(out)]) == 0
    records = [json.loads(file.read_text()) for file in (state / CHECKPOINTS).glob("*/edgemt.json")]
    step = max((record["dev_bleu"], record["steps"]) for record in records)[1]  # of equal ones the newest
    assert len(records) == 3 and f"(step {step}, the best on dev)" in capsys.readouterr().out
    best = state / CHECKPOINTS / f"step-{step}"
    for name in ("model.safetensors", "edgemt.json", "config.json", "vocab.json"):
        assert (out / name).read_bytes() == (best / name).read_bytes()
    average = ["train", "average", *(str(state / CHECKPOINTS / f"step-{step}") for step in (2, 4))]
    assert main([*average, "--out", str(tmp_path / "mean")]) == 0
    two, four, mean = (
        load_file(folder / "model.safetensors")
        for folder in (state / CHECKPOINTS / "step-2", state / CHECKPOINTS / "step-4", tmp_path / "mean")
    )
    for name, weight in mean.items():
        torch.testing.assert_close(weight, (two[name].double() + four[name].double()).div(2).float())
    transformers.MarianMTModel.from_pretrained(tmp_path / "mean")
    record = json.loads((tmp_path / "mean/edgemt.json").read_text())
    assert [item["steps"] for item in record["averaged"]] == [2, 4]


def test_only_checkpoints_of_one_model_are_averaged(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, ffn in (("one", 32), ("other", 48)):
        run = Run(tiny_config(1, model={**SHAPE, "ffn": ffn}), data, tmp_path / "state" / name)
        run.write_checkpoint(tmp_path / name)
    out = ["--out", str(tmp_path / "mean")]
    assert main(["train", "average", str(tmp_path / "one"), *out]) == 2
    assert "needs two checkpoints or more" in capsys.readouterr().err
    assert main(["train", "average", str(tmp_path / "one"), str(tmp_path / "other"), *out]) == 2
    said = capsys.readouterr().err
    assert "is not of the same model" in said and "fc1" in said and said.count("\n") == 1
    assert not (tmp_path / "mean").exists()
