"""Mixed precision: an overflow backs the scale off, a bad step is skipped, a broken run says where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_fixtures import losses, tiny_config, write_tiny_data

from edgemt.errors import EdgemtError
from edgemt.training.loop import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("training") / "data")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-o1"])
def test_every_precision_learns(data: Path, tmp_path: Path, precision: str) -> None:
    run = Run(tiny_config(40, precision=precision), data, tmp_path)
    run.train()
    seen = losses(tmp_path)
    assert seen[40] < seen[1] - 0.3
    assert {p.dtype for p in run.parameters} == {torch.float32}  # the master weights


def test_pure_fp16_breaks_as_it_does_in_the_literature(data: Path, tmp_path: Path) -> None:
    """AdamW's epsilon, 1e-8, is zero in FP16: the first gradient that underflows divides zero by zero."""
    run = Run(tiny_config(80, precision="fp16-pure"), data, tmp_path)
    assert {p.dtype for p in run.parameters} == {torch.float16}
    assert {w.dtype for w in run.average.weights.values()} == {torch.float32}
    with pytest.raises(EdgemtError, match="has not been finite for 30 steps"):
        run.train()


def test_an_overflow_backs_the_scale_off(data: Path, tmp_path: Path) -> None:
    config = tiny_config(40, precision="fp16-o1", loss_scale={"initial": 2.0**30})
    run = Run(config, data, tmp_path)
    run.train()
    scales = [scale for _, scale in run.stepper.scales]
    assert scales[0] == 2.0**30 and scales == sorted(scales, reverse=True)
    assert 0 < run.stepper.skipped == len(scales) - 1
    assert run.stepper.skipped_in_row == 0
    again = Run(config, data, tmp_path)
    assert again.stepper.scaler.get_scale() == scales[-1]
    assert again.stepper.scales == run.stepper.scales


def test_a_bad_step_is_skipped_and_counted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tiny_config(5), data, tmp_path)
    honest, weights = run.family.summed_loss, {}

    def bad_at_3(*args: object) -> torch.Tensor:
        weights[run.step] = run.parameters[0].detach().clone()
        return honest(*args) * (float("nan") if run.step == 3 else 1.0)

    monkeypatch.setattr(run.family, "summed_loss", bad_at_3)
    run.train()
    assert run.stepper.skipped == 1
    assert torch.equal(weights[3], weights[4]) and not torch.equal(weights[4], weights[5])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in lines] == [False, False, True, False, False]


def test_too_many_bad_steps_end_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tiny_config(50, max_skipped=4), data, tmp_path)
    honest = run.family.summed_loss
    monkeypatch.setattr(
        run.family, "summed_loss", lambda *args: honest(*args) * (float("inf") if run.step > 6 else 1.0)
    )
    with pytest.raises(EdgemtError, match=r"step 10: .* 4 steps in a row"):
        run.train()
    assert all(torch.isfinite(p).all() for p in run.parameters)
