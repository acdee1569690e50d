"""Pickles are data: trainers' records are inert, other classes are refused, damage gets one sentence."""

from __future__ import annotations

import argparse
import os
import pickle
import random
import sys
import types
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.pickles import Inert, load_pickle
from edgemt.export.checkpoints.tensors import joined, of_tensor


class Trap:
    """Pickles as a call of a trainer's class with arguments that would do harm if that class were real."""

    def __init__(self, target: Any, *arguments: Any) -> None:
        self.target, self.arguments = target, arguments

    def __reduce__(self) -> tuple:
        return self.target, self.arguments, {"cur_scale": 8.0}


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of DeepSpeed's name whose class runs a command; the reader must not come near it."""
    module = types.ModuleType("deepspeed.runtime.fp16.loss_scaler")

    def scaler(command: str) -> None:
        os.system(command)

    scaler.__module__, scaler.__qualname__ = module.__name__, "LossScaler"
    module.LossScaler = scaler  # type: ignore[attr-defined]
    for name in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.fp16", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_trainers_record_runs_nothing(deepspeed: Any, tmp_path: Path, new: bool) -> None:
    proof = tmp_path / "was-here"
    trap = Trap(deepspeed.LossScaler, f"touch {proof}")
    torch.save({"scaler": trap, "w": torch.ones(2)}, tmp_path / "f.pt", _use_new_zipfile_serialization=new)
    loaded = load_pickle(tmp_path / "f.pt")
    assert not proof.exists()
    assert torch.equal(loaded["w"], torch.ones(2))
    scaler = loaded["scaler"]
    assert isinstance(scaler, Inert) and scaler.name == "deepspeed.runtime.fp16.loss_scaler.LossScaler"
    assert scaler.arguments == (f"touch {proof}",) and scaler.get("cur_scale") == 8.0


class Unknown:
    pass


class Stage(Enum):
    TWO = 2


@pytest.mark.parametrize("evil", [os.system, eval, exec, __import__, Unknown], ids=lambda c: c.__name__)
def test_other_classes_are_refused_by_name(tmp_path: Path, evil: Any) -> None:
    torch.save({"a": Trap(evil, "1")}, tmp_path / "f.pt")
    with pytest.raises(EdgemtError, match=rf"refused.*{evil.__name__}.*save_file where you trust it"):
        load_pickle(tmp_path / "f.pt")


def test_a_prefix_is_taken_only_when_asked(tmp_path: Path) -> None:
    torch.save({"stage": Stage.TWO, "args": argparse.Namespace(lr=0.1)}, tmp_path / "f.pt")
    with pytest.raises(EdgemtError, match="Stage"):
        load_pickle(tmp_path / "f.pt")
    loaded = load_pickle(tmp_path / "f.pt", inert=[f"{__name__}."])
    assert loaded["stage"].arguments == (2,) and loaded["args"].get("lr") == 0.1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), new=st.booleans(), cut=st.booleans())
def test_damage_is_one_sentence_or_harmless(tmp_path: Path, seed: int, new: bool, cut: bool) -> None:
    file, draw = tmp_path / "f.pt", random.Random(seed)
    torch.save({"model": {"a": torch.arange(40.0)}, "n": [1, "x"]}, file, _use_new_zipfile_serialization=new)
    content = bytearray(file.read_bytes())
    if cut:
        del content[draw.randrange(len(content)) :]
    else:
        for _ in range(3):
            content[draw.randrange(len(content))] = draw.randrange(256)
    file.write_bytes(content)
    try:
        load_pickle(file)
    except EdgemtError as error:
        assert str(file) in str(error) and "\n" not in str(error)


def test_pickles_of_other_writers(tmp_path: Path) -> None:
    file = tmp_path / "f.pt"
    file.write_bytes(pickle.dumps({"a": 1}, protocol=5))
    with pytest.raises(EdgemtError, match="damaged, or was not written by torch"):
        load_pickle(file)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    with pytest.raises(EdgemtError, match=r"TorchScript.*state_dict"):
        load_pickle(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(EdgemtError, match="damaged"):
        load_pickle(file)


def test_weights_are_read_from_the_file_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, in parts, transposed, shared and sliced: what torch holds is what is read, piece by piece."""
    monkeypatch.setattr("edgemt.export.checkpoints.tensors.PIECE", 7)
    table = torch.randn(9, 5)
    saved = {
        "table": table,
        "slice": table[2:6],
        "turned": table.T,
        "half": table.half(),
        "brain": table.bfloat16(),
    }
    torch.save({**saved, "empty": torch.zeros(0, 5), "scalar": torch.tensor(3)}, tmp_path / "f.pt")
    loaded = load_pickle(tmp_path / "f.pt")
    for name, tensor in {**saved, "empty": torch.zeros(0, 5), "scalar": torch.tensor(3)}.items():
        stored = of_tensor(loaded[name], "f.pt")
        assert stored.shape == tensor.shape and (stored.load() == tensor.float().numpy()).all()
        assert all(piece.size <= 7 for piece in stored.pieces())
    flat = loaded["table"].reshape(-1)
    assert (joined([flat[:8], flat[8:45]], (9, 5), "").load() == table.numpy()).all()
    place = tmp_path / "f.pt"
    stored = of_tensor(loaded["table"], "f.pt")
    place.rename(tmp_path / "gone.pt")  # the values come from the file, not from memory
    with pytest.raises(OSError):
        stored.load()
