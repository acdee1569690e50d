"""What Accelerate's `save_state` writes here in each precision: FP32 weights, and the scaler's last scale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import marian
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from amp_loops import assert_exported, loss_of, model_of
from transformers import MarianMTModel

from edgemt.cli import main
from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.read import read_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marian.student(tmp_path_factory.mktemp("accelerate") / "base")


def train(base: Path, out: Path, precision: str, steps: int = 3, **save: Any) -> MarianMTModel:
    """A loop as Accelerate's guide has it, which saves its state in `out`; in FP16 one step overflows."""
    AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process, and other tests' too
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    if precision == "fp16":  # Accelerate gives the CPU no scaler and no autocast to FP16; torch has both
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, backoff_factor=2.0**-10)
    model = model_of(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    prepared, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    for step in range(steps):
        accelerator.backward(loss_of(prepared, step))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    accelerator.save_state(str(out), **save)
    return model


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_save_state(base: Path, tmp_path: Path, precision: str) -> None:
    model = train(base, tmp_path / "state", precision)
    assert (tmp_path / "state" / "scaler.pt").is_file() == (precision == "fp16")
    read = read_checkpoint(tmp_path / "state", config_from=base)
    assert read.form == "Accelerate save_state" and read.dtypes == ("float32",)
    told = {
        "masters": "FP32: autocast keeps the model itself in FP32",
        "written_by": "Accelerate",
        "steps": 3,
        "weights": "model.safetensors",
    }
    if precision == "fp16":
        told |= {"precision": "fp16-o1", "loss_scale": 256.0, "steps": 2}  # the first was skipped
    assert read.training() == told
    assert_exported(read, model.state_dict())


def test_export_needs_the_configuration(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(base, tmp_path / "state", "bf16")
    command = ["export", str(tmp_path / "state"), "--fp32", "-o", str(tmp_path / "out")]
    assert main(command) == 1
    assert "--config-from" in capsys.readouterr().err
    assert main([*command, "--config-from", str(base)]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["provenance"]["training"]["written_by"] == "Accelerate"


def test_pickled_sharded_and_of_several_models(base: Path, tmp_path: Path) -> None:
    model = train(base, tmp_path / "pickled", "bf16", safe_serialization=False)
    assert (tmp_path / "pickled" / "pytorch_model.bin").is_file()
    read = read_checkpoint(tmp_path / "pickled", config_from=base)
    assert_exported(read, model.state_dict())
    shutil.copy(base / "model.safetensors", tmp_path / "pickled" / "model_1.safetensors")
    told = read_checkpoint(tmp_path / "pickled", config_from=base).amp["left_aside"]
    assert told == "model_1.safetensors: other models of the same run"
    (tmp_path / "pickled" / "pytorch_model.bin").unlink()
    Accelerator(cpu=True).save_model(model, tmp_path / "pickled", max_shard_size="60KB")
    read = read_checkpoint(tmp_path / "pickled", config_from=base)
    assert len(read.weights.files) == 4
    assert_exported(read, model.state_dict())


def test_gathered_by_fsdp(base: Path, tmp_path: Path) -> None:
    """FSDP's own files, laid out by hand: `pytorch_model_fsdp.bin` with a full state dict, or shards."""
    model = train(base, tmp_path / "state", "no")
    (tmp_path / "state" / "model.safetensors").unlink()
    (tmp_path / "state" / "pytorch_model_fsdp_0").mkdir()
    with pytest.raises(EdgemtError, match="join them with `accelerate merge-weights pytorch_model_fsdp_0"):
        read_checkpoint(tmp_path / "state", config_from=base)
    torch.save(model.state_dict(), tmp_path / "state" / "pytorch_model_fsdp.bin")
    assert_exported(read_checkpoint(tmp_path / "state", config_from=base), model.state_dict())


def test_damaged(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "state", "fp16")
    weights, scaler = tmp_path / "state" / "model.safetensors", tmp_path / "state" / "scaler.pt"
    for name in ("random_states_0.pkl", "optimizer.bin"):  # not needed: not in the way
        (tmp_path / "state" / name).write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    assert "steps" not in read_checkpoint(tmp_path / "state", config_from=base).amp
    content = scaler.read_bytes()
    scaler.write_bytes(content[:100])
    with pytest.raises(EdgemtError, match=r"scaler\.pt is truncated or damaged"):
        read_checkpoint(tmp_path / "state", config_from=base)
    scaler.write_bytes(content)
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(EdgemtError, match=r"model\.safetensors is truncated or damaged"):
        read_checkpoint(tmp_path / "state", config_from=base)
    weights.unlink()
    with pytest.raises(EdgemtError, match="has a state of Accelerate's but no weights"):
        read_checkpoint(tmp_path / "state", config_from=base)
