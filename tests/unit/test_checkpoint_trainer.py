"""Checkpoints that transformers' Trainer writes here: autocast keeps FP32, a half model has no masters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import marian
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from amp_loops import assert_exported
from transformers import MarianMTModel, Trainer, TrainingArguments

from edgemt.cli import main
from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.read import read_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marian.student(tmp_path_factory.mktemp("trainer") / "base")


def train(base: Path, out: Path, dtype: torch.dtype, **arguments: object) -> tuple[Path, MarianMTModel]:
    """The last checkpoint of a short run, with the tokenizer beside it, and the model as it then was."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of other tests in this process
    model = MarianMTModel.from_pretrained(base, dtype=dtype, attn_implementation="eager")
    ids = torch.randint(5, 300, (8, 7), generator=torch.Generator().manual_seed(1))
    settings = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-4}
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    trainer = Trainer(
        model,
        TrainingArguments(str(out), **settings, **quiet, **arguments),  # pyright: ignore
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],  # pyright: ignore
    )
    trainer.train()
    for name in ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json"):
        shutil.copy(base / name, out / "checkpoint-4" / name)
    return out / "checkpoint-4", model


@pytest.fixture(scope="module")
def autocast(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MarianMTModel]:
    return train(base, tmp_path_factory.mktemp("trainer") / "run", torch.float32, bf16=True)


def test_autocast_keeps_the_masters(autocast: tuple[Path, MarianMTModel]) -> None:
    folder, model = autocast
    read = read_checkpoint(folder)
    assert read.form == "Trainer checkpoint" and read.dtypes == ("float32",)
    assert read.training() == {
        "masters": "FP32: autocast keeps the model itself in FP32",
        "steps": 4,
        "written_by": "transformers Trainer",
        "weights": "model.safetensors",
    }
    assert_exported(read, model.state_dict())


def test_a_half_model_has_no_masters(base: Path, tmp_path: Path) -> None:
    folder, model = train(base, tmp_path / "run", torch.bfloat16, bf16=True)
    read = read_checkpoint(folder)
    assert read.amp["precision"] == "bf16-pure" and read.amp["masters"].startswith("none: the model itself")
    for name, tensor in read.tensors.items():
        assert np.array_equal(tensor, model.state_dict()[name].float().numpy()), name


def test_fp16_leaves_its_scale(autocast: tuple[Path, MarianMTModel], tmp_path: Path) -> None:
    """On the CPU the Trainer has no scaler; scaler.pt is what it saves of one on a GPU."""
    folder = Path(shutil.copytree(autocast[0], tmp_path / "checkpoint-4"))
    torch.save(torch.amp.GradScaler("cpu", init_scale=512.0).state_dict(), folder / "scaler.pt")
    amp = read_checkpoint(folder).amp
    assert amp["precision"] == "fp16-o1"  # a new scaler has not started, and saves its first scale
    assert amp["loss_scale"] == 512.0


def test_sharded_and_pickled(autocast: tuple[Path, MarianMTModel], tmp_path: Path) -> None:
    folder, model = autocast
    leave = shutil.ignore_patterns("model.safetensors")
    for name, options in {
        "shards": {"max_shard_size": "60KB"},
        "pickled": {"safe_serialization": False},
    }.items():
        copy = Path(shutil.copytree(folder, tmp_path / name, ignore=leave))
        model.save_pretrained(copy, **options)
        read = read_checkpoint(copy)
        assert read.form == "Trainer checkpoint" and len(read.weights.files) == (
            1 if name == "pickled" else 4
        )
        assert_exported(read, model.state_dict())
    (tmp_path / "shards" / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(EdgemtError, match=r"lacks model-00002-of-00004\.safetensors"):
        read_checkpoint(tmp_path / "shards")


def test_pickles_that_are_not_needed_are_not_read(
    autocast: tuple[Path, MarianMTModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(autocast[0], tmp_path / "checkpoint-4"))
    for name in ("training_args.bin", "rng_state.pth", "optimizer.pt", "scheduler.pt"):
        assert (folder / name).is_file()
        (folder / name).write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["steps"] == 4


def test_state_without_weights(autocast: tuple[Path, MarianMTModel], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(autocast[0], tmp_path / "checkpoint-4"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(EdgemtError, match="has the Trainer's state but no weights; give the checkpoint with"):
        read_checkpoint(folder)
    (folder / "pytorch_model_fsdp_0").mkdir()
    with pytest.raises(EdgemtError, match=r"shards of FSDP.*accelerate merge-weights pytorch_model_fsdp_0"):
        read_checkpoint(folder)
