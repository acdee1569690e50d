"""Checkpoints of NVIDIA Apex, in the layouts of its sources: masters are found, and named by proof alone."""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import marian
import pytest
import torch
from amp_loops import ApexO2, TorchAmp, assert_exported

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.read import read_checkpoint

AMP = {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 17}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marian.student(tmp_path_factory.mktemp("apex") / "base")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """The configuration and the tokenizer, for a checkpoint file to lie beside."""
    leave = shutil.ignore_patterns("model.safetensors")
    return Path(shutil.copytree(base, tmp_path / "run", ignore=leave))


@pytest.fixture(scope="module")
def o2(base: Path) -> ApexO2:
    """In two groups, as BERT's optimizers have them: not in the model's order."""
    trained = ApexO2(base, lambda name: not name.endswith(("bias", "norm.weight")))
    trained.step(0)
    trained.step(1)
    return trained


@pytest.fixture
def scaler_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A class of the name that FP16_Optimizer's pickles have in them; gone when the file is read."""
    module = types.ModuleType("apex.fp16_utils.loss_scaler")
    kind = type("DynamicLossScaler", (), {"__module__": module.__name__, "__qualname__": "DynamicLossScaler"})
    module.DynamicLossScaler = kind  # type: ignore[attr-defined]
    for name in ("apex", "apex.fp16_utils", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    yield kind


def test_o1_keeps_fp32_weights(base: Path, folder: Path) -> None:
    trained = TorchAmp(
        base
    )  # O1 is torch.amp's autocast under another name; amp's own state is the difference
    saved = {"model": trained.model.state_dict(), "optimizer": trained.optimizer.state_dict(), "amp": AMP}
    torch.save({**saved, "epoch": 3}, folder / "amp.pt")
    read = read_checkpoint(folder / "amp.pt")
    assert read.form == "Apex O1"
    assert read.training() == {
        "written_by": "Apex",
        "precision": "fp16-o1",
        "loss_scale": 65536.0,
        "steps_since_overflow": 17,
        "epochs": 3,
        "optimizer_steps": 2,
        "masters": "the model's own FP32 weights",
        "weights": "amp.pt (model)",
    }
    assert_exported(read, trained.model.state_dict())


@pytest.mark.parametrize("key", ["master params", "master_params"])
@pytest.mark.parametrize("hook", [True, False], ids=["state dict cast to FP32", "state dict in FP16"])
def test_o2_masters_that_the_loop_saved(o2: ApexO2, folder: Path, key: str, hook: bool) -> None:
    model = o2.state_dict() if hook else o2.model.state_dict()
    masters = [master for group in o2.masters for master in group]  # list(amp.master_params(optimizer))
    saved = {"model": model, "optimizer": o2.optimizer.state_dict(), key: masters, "amp": AMP}
    torch.save(saved, folder / "ckpt_2.pt")
    read = read_checkpoint(folder / "ckpt_2.pt")
    assert read.form == "Apex O2 with masters" and read.amp["precision"] == "fp16-o2"
    assert read.amp["masters"] == f"FP32 masters of {len(masters)} weights"
    assert read.sources.startswith(f"FP32 master in ckpt_2.pt ({key})")
    assert_exported(read, o2.named_masters())


def test_without_scaling_the_level_is_not_known(o2: ApexO2, base: Path, folder: Path) -> None:
    amp = {"loss_scaler0": {"loss_scale": 1.0, "unskipped": 0}}
    full = TorchAmp(base).model.state_dict()
    for model, form in ((o2.state_dict(), "Apex O2 or O3 without masters"), (full, "Apex O0 or O1")):
        torch.save({"model": model, "amp": amp}, folder / "amp.pt")
        read = read_checkpoint(folder / "amp.pt")
        assert read.form == form and "precision" not in read.amp


def test_o2_without_masters_says_that_its_weights_are_rounded(o2: ApexO2, folder: Path) -> None:
    saved = {"model": o2.state_dict(), "optimizer": o2.optimizer.state_dict(), "amp": AMP}
    torch.save(saved, folder / "amp.pt")
    read = read_checkpoint(folder / "amp.pt")
    assert read.form == "Apex O2 without masters" and read.dtypes == ("float32",)
    assert read.amp["masters"] == "none found: the weights are rounded to FP16"
    name = "model.encoder.layers.0.fc1.weight"
    assert (read.tensors[name] == o2.model.state_dict()[name].float().numpy()).all()


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before torch 1.6"])
def test_fp16_optimizer(o2: ApexO2, folder: Path, scaler_class: Any, new: bool) -> None:
    scaler = scaler_class()
    scaler.__dict__ |= {"cur_scale": 512.0, "cur_iter": 40, "last_overflow_iter": 3, "scale_factor": 2.0}
    optimizer = {
        "loss_scaler": scaler,
        "dynamic_loss_scale": True,
        "overflow": False,
        "first_closure_call_this_step": True,
        "optimizer_state_dict": o2.optimizer.state_dict(),
        "fp32_from_fp16": o2.masters,
    }
    saved = {"model": o2.model.state_dict(), "optimizer": optimizer}
    torch.save(saved, folder / "saved.pth", _use_new_zipfile_serialization=new)
    read = read_checkpoint(folder / "saved.pth")
    assert read.form == "Apex O2 with masters"
    assert read.amp["loss_scale"] == 512.0 and read.amp["steps"] == 40
    assert_exported(read, o2.named_masters())


def test_flat_masters_of_the_fused_optimizer(base: Path, folder: Path) -> None:
    trained = ApexO2(base)
    trained.step(0)
    flat = [torch.cat([master.detach().reshape(-1) for master in group]) for group in trained.masters]
    optimizer = {
        "dynamic_loss_scale": True,
        "cur_scale": 1024.0,
        "cur_iter": 7,
        "optimizer_state_dict": {},
        "fp32_groups_flat": flat,
    }
    torch.save({"model": trained.model.state_dict(), "optimizer": optimizer}, folder / "saved.pth")
    read = read_checkpoint(folder / "saved.pth")
    assert read.amp["loss_scale"] == 1024.0 and read.amp["steps"] == 7
    assert_exported(read, trained.named_masters())


def test_masters_mend_weights_that_overflowed_in_fp16(base: Path, folder: Path) -> None:
    trained = ApexO2(base)
    name = "model.encoder.layers.1.fc2.bias"
    with torch.no_grad():
        trained.named_masters()[name][3] = 70000.0
        dict(trained.model.named_parameters())[name][3] = torch.inf
    saved = {"model": trained.model.state_dict(), "amp": AMP}
    torch.save(saved, folder / "amp.pt")
    with pytest.raises(EdgemtError, match=rf"overflowed in FP16: {name}: .*FP32 masters"):
        read_checkpoint(folder / "amp.pt")
    torch.save({**saved, "master params": trained.masters}, folder / "amp.pt")
    assert read_checkpoint(folder / "amp.pt").tensors[name][3] == 70000.0


def save_with_masters(trained: ApexO2, masters: list[list[torch.Tensor]], file: Path) -> Path:
    torch.save({"model": trained.model.state_dict(), "master params": masters, "amp": AMP}, file)
    return file


def test_equal_weights_are_told_apart_by_order_only_where_it_shows(base: Path, folder: Path) -> None:
    trained = ApexO2(base)
    first, second = (f"model.encoder.layers.{layer}.fc2.bias" for layer in (0, 1))
    named = trained.named_masters()
    with torch.no_grad():
        for name, tiny in ((first, 1e-9), (second, 2e-9)):  # both are zero in FP16
            named[name].fill_(tiny)
            dict(trained.model.named_parameters())[name].zero_()
    read = read_checkpoint(save_with_masters(trained, trained.masters, folder / "amp.pt"))
    for name in (first, second):
        assert (read.tensors[name] == named[name].numpy()).all()
    shuffled = [list(reversed(trained.masters[0]))]
    with pytest.raises(EdgemtError, match=f"{first} and {second} alike.*save model.float"):
        read_checkpoint(save_with_masters(trained, shuffled, folder / "amp.pt"))


def test_masters_of_another_step_are_not_given_names(o2: ApexO2, folder: Path) -> None:
    other = [[master.detach() + 0.5 for master in group] for group in o2.masters]
    with pytest.raises(EdgemtError, match="no weight of the model is its rounding"):
        read_checkpoint(save_with_masters(o2, other, folder / "amp.pt"))
