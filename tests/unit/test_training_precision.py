"""Mixed precision: an overflow backs the scale off, a bad step is skipped and named, a broken run ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_fixtures import losses, tiny_config, write_tiny_data

from edgemt.errors import EdgemtError
from edgemt.training.log import LOG, read_log
from edgemt.training.loop import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("training") / "data")


def events(directory: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in read_log(directory / LOG) if line.get("event") == name]


def norms(directory: Path) -> list[float | None]:
    return [line["gradient_norm"] for line in read_log(directory / LOG) if "event" not in line]


def spoil(run: Run, monkeypatch: pytest.MonkeyPatch, factor: Any) -> None:
    """Multiply the loss of each step by `factor(step)`."""
    honest = run.family.summed_loss
    monkeypatch.setattr(run.family, "summed_loss", lambda *args: honest(*args) * factor(run.step))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-o1"])
def test_every_precision_learns(data: Path, tmp_path: Path, precision: str) -> None:
    run = Run(tiny_config(40, precision=precision), data, tmp_path)
    run.train()
    seen = losses(tmp_path)
    assert seen[40] < seen[1] - 0.3
    assert {p.dtype for p in run.parameters} == {torch.float32}  # the master weights


def test_pure_fp16_breaks_as_it_does_in_the_literature(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Squares of small gradients are zero in FP16: AdamW divides by its epsilon, and the weights take off."""
    run = Run(tiny_config(80, precision="fp16-pure"), data, tmp_path)
    assert {p.dtype for p in run.parameters} == {torch.float16}
    assert {w.dtype for w in run.average.weights.values()} == {torch.float32}
    with pytest.raises(
        EdgemtError, match=r"has not been finite for 30 steps in a row; first not finite: the"
    ):
        run.train()
    said = capsys.readouterr().err
    assert "warning: fp16-pure has no master weights and no loss scaling" in said
    (diverged, *_) = events(tmp_path, "diverged")
    first = events(tmp_path, "not_finite")[0]
    assert first["step"] == diverged["step"] - 29
    assert (first["phase"], first["dtype"]) == ("forward", "float16") and first["nan"] > 0
    assert not all(bool(p.abs().max() < 2) for p in run.parameters)  # all were below or at 1


def test_a_small_batch_in_pure_fp16_warns(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"batch_tokens": 40, "accumulate": 1}
    Run(tiny_config(3, precision="fp16-pure", data=small), data, tmp_path / "pure").train()
    assert capsys.readouterr().err.count("use at least 4") == 1
    Run(tiny_config(3, data=small), data, tmp_path / "bf16").train()
    assert "use at least 4" not in capsys.readouterr().err


def test_an_overflow_backs_the_scale_off(data: Path, tmp_path: Path) -> None:
    config = tiny_config(40, precision="fp16-o1", loss_scale={"initial": 2.0**40})
    run = Run(config, data, tmp_path)
    run.train()
    scales = [scale for _, scale in run.stepper.scales]
    assert scales[0] == 2.0**40 and scales == sorted(scales, reverse=True)
    assert 0 < run.stepper.skipped == len(scales) - 1
    assert run.stepper.skipped_in_row == 0
    found = events(tmp_path, "not_finite")
    assert len(found) == run.stepper.skipped
    assert (found[0]["phase"], found[0]["module"]) == ("backward", "lm_head")
    assert scales[-1] < 2.0**30
    again = Run(config, data, tmp_path)
    assert again.stepper.scaler.get_scale() == scales[-1]
    assert again.stepper.scales == run.stepper.scales


def test_growth_backoff_and_interval_are_the_configured_ones(data: Path, tmp_path: Path) -> None:
    scaling = {"initial": 4.0, "growth": 8.0, "backoff": 0.25, "interval": 3}
    run = Run(tiny_config(10, precision="fp16-o1", loss_scale=scaling), data, tmp_path)
    run.train()
    assert run.stepper.scales[:4] == [(1, 4.0), (4, 32.0), (7, 256.0), (10, 2048.0)]
    scaling["initial"] = 2.0**40
    run = Run(tiny_config(2, precision="fp16-o1", loss_scale=scaling), data, tmp_path / "high")
    run.train()
    assert run.stepper.scales == [(1, 2.0**40), (2, 2.0**38)]


def test_gradients_are_unscaled_before_they_are_clipped(data: Path, tmp_path: Path) -> None:
    """The norm, and so what clipping does, is that of FP32 whatever the scale."""
    for name, changes in (
        ("fp32", {"precision": "fp32"}),
        ("low", {"precision": "fp16-o1", "loss_scale": {"initial": 2.0**4}}),
        ("high", {"precision": "fp16-o1", "loss_scale": {"initial": 2.0**12}}),
    ):
        clipped = {"rate": 3e-3, "clip": 0.1}
        Run(tiny_config(6, optimizer=clipped, **changes), data, tmp_path / name).train()
    expected = norms(tmp_path / "fp32")
    assert None not in expected and min(filter(None, expected)) > 0.1
    for name in ("low", "high"):
        assert norms(tmp_path / name) == pytest.approx(expected, rel=0.05)


def test_two_optimizers_skip_a_step_of_two_batches_together(data: Path, tmp_path: Path) -> None:
    run = Run(
        tiny_config(
            30,
            precision="fp16-o1",
            loss_scale={"initial": 2.0**40},
            optimizer={"name": "muon", "rate": 3e-3, "muon_rate": 3e-3},
            data={"batch_tokens": 500, "accumulate": 2},
        ),
        data,
        tmp_path,
    )
    assert len(run.optimizers) == 2
    by_muon = run.optimizers[1].param_groups[0]["params"][0]
    start = [by_muon.detach().clone(), run.parameters[0].detach().clone()]
    after: dict[int, list[bool]] = {}
    honest = run.average.update

    def look(step: int) -> None:
        after[step] = [torch.equal(*pair) for pair in zip(start, [by_muon, run.parameters[0]], strict=True)]
        honest(step)

    run.average.update = look  # type: ignore[method-assign]
    run.train()
    first = next(step for step, same in after.items() if not all(same))
    assert 5 < first < 25 and after[first] == [False, False]
    assert {line["step"] for line in events(tmp_path, "not_finite")} >= set(range(1, first))
    seen = losses(tmp_path)
    assert seen[30] < seen[1] - 0.1


def test_a_bad_step_is_skipped_counted_and_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tiny_config(5), data, tmp_path)
    weights = {}

    def bad_at_3(step: int) -> float:
        weights[step] = run.parameters[0].detach().clone()
        return float("nan") if step == 3 else 1.0

    spoil(run, monkeypatch, bad_at_3)
    run.train()
    assert run.stepper.skipped == 1
    assert torch.equal(weights[3], weights[4]) and not torch.equal(weights[4], weights[5])
    assert [loss is None for loss in losses(tmp_path).values()] == [False, False, True, False, False]
    (found,) = events(tmp_path, "not_finite")
    assert (found["step"], found["phase"], found["step_skipped"]) == (3, "loss", True)
    assert "step 3 skipped: not finite: the loss (1 NaN of 1 float32" in capsys.readouterr().err


@pytest.mark.parametrize("watched", [False, True])
def test_an_overflow_in_a_module_is_named_in_the_log(data: Path, tmp_path: Path, watched: bool) -> None:
    run = Run(tiny_config(1, precision="fp16-o1", watch_activations=watched), data, tmp_path)
    with torch.no_grad():
        run.model.get_parameter("model.decoder.layers.0.fc1.weight").mul_(1e4)
        run.model.get_parameter("model.decoder.layers.0.fc2.weight").mul_(1e5)
    run.train()
    (found,) = events(tmp_path, "not_finite")
    assert (found["module"], found["tensor"]) == ("model.decoder.layers.0.fc2", "output")
    assert (found["phase"], found["dtype"]) == ("forward", "float16")


def test_too_many_bad_steps_end_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tiny_config(50, max_skipped=4), data, tmp_path)
    spoil(run, monkeypatch, lambda step: float("inf") if step > 6 else 1.0)
    with pytest.raises(
        EdgemtError, match=r"step 10: .* 4 steps in a row; first not finite: the loss \(1 Inf"
    ):
        run.train()
    assert all(torch.isfinite(p).all() for p in run.parameters)


@pytest.mark.parametrize("stop", [False, True])
def test_a_loss_that_rises_ends_the_run_if_asked(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: bool
) -> None:
    every = {"save_minutes": 0, "save_steps": 50}
    run = Run(tiny_config(90, stop_on_divergence=stop, every=every), data, tmp_path)
    spoil(run, monkeypatch, lambda step: 2.0 if step > 55 else 1.0)
    if stop:
        with pytest.raises(EdgemtError, match=r"step \d\d: the loss has risen to .* lower the rate"):
            run.train()
        assert Run(run.config, data, tmp_path).step == 50  # the last saved state
    else:
        run.train()
        assert run.step == 90
    (found,) = events(tmp_path, "diverged")
    assert 55 < found["step"] < 90 and "the loss has risen to" in found["reason"]
