"""What is read from a checkpoint, and the one sentence that each kind of bad checkpoint gets."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import marian
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgemt.errors import EdgemtError, UsageError
from edgemt.export.checkpoints.read import open_checkpoint, read_checkpoint
from edgemt.export.families import check_architecture
from edgemt.export.graphs.marian import build
from edgemt.export.languages import languages


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marian.student(tmp_path_factory.mktemp("good") / "checkpoint")


@pytest.fixture
def checkpoint(good: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(good, tmp_path / "checkpoint"))


def change_config(checkpoint: Path, **changes: object) -> None:
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch /tmp/edgemt-was-here",)


def poison(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with (checkpoint / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"lm_head.weight": Evil()}, file, protocol=2)


def poison_zip(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save({"lm_head.weight": torch.zeros(2), "more": Evil()}, checkpoint / "pytorch_model.bin")


def truncate(file: Path, left: int) -> None:
    file.write_bytes(file.read_bytes()[:left])


def truncated_pickle(checkpoint: Path) -> None:
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    truncate(checkpoint / "pytorch_model.bin", 5000)


def not_finite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.encoder.layers.1.fc2.bias"][3] = float("nan")
    tensors["model.decoder.layers.0.fc1.weight"][0, 0] = float("inf")


def misfit(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.encoder.layers.0.fc1.bias"]
    tensors["model.encoder.layers.9.fc1.bias"] = torch.zeros(64)
    tensors["model.decoder.layers.0.fc2.weight"] = torch.zeros(7, 64)


BAD: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "absent": (lambda c: shutil.rmtree(c), ["no such checkpoint", "checkpoint"]),
    "a file": (lambda c: (shutil.rmtree(c), c.write_text("x")), ["is not a checkpoint", "torch.save"]),
    "no config": (lambda c: (c / "config.json").unlink(), ["has no config.json", "--config-from"]),
    "bad config": (lambda c: (c / "config.json").write_text("{"), ["config.json", "cannot be read"]),
    "no weights": (lambda c: (c / "model.safetensors").unlink(), ["has no weights", "model.safetensors"]),
    "empty weights": (lambda c: truncate(c / "model.safetensors", 0), ["model.safetensors", "truncated"]),
    "half": (lambda c: truncate(c / "model.safetensors", 9000), ["model.safetensors", "truncated"]),
    "pickle": (poison, ["pytorch_model.bin", "refused", "posix.system", "safetensors"]),
    "pickle in zip": (poison_zip, ["pytorch_model.bin", "refused", "posix.system", "safetensors"]),
    "half pickle": (truncated_pickle, ["pytorch_model.bin", "truncated"]),
    "not a state dict": (
        lambda c: (
            (c / "model.safetensors").unlink(),
            torch.save([torch.zeros(2)], c / "pytorch_model.bin"),
        ),
        ["pytorch_model.bin", "not a state dict"],
    ),
    "NaN": (
        lambda c: change_tensors(c, not_finite),
        ["NaN or infinite", "model.decoder.layers.0.fc1.weight, model.encoder.layers.1.fc2.bias"],
    ),
    "misfit": (
        lambda c: change_tensors(c, misfit),
        [
            "missing: model.encoder.layers.0.fc1.bias",
            "unexpected: model.encoder.layers.9.fc1.bias",
            "mis-shaped: model.decoder.layers.0.fc2.weight is [7, 64] and should be [32, 64]",
        ],
    ),
    "architecture": (
        lambda c: (
            change_config(c, architectures=["M2M100ForConditionalGeneration"]),
            (c / "source.spm").unlink(),
        ),
        ["M2M100ForConditionalGeneration", "MarianMTModel"],
    ),
    "half a config": (
        lambda c: (c / "config.json").write_text('{"architectures": ["MarianMTModel"], "vocab_size": 9}'),
        ["config.json", "lacks"],
    ),
    "heads": (
        lambda c: change_config(c, encoder_attention_heads=5),
        ["config.json", "MarianMTModel", "divisible"],
    ),
    "a word for a number": (lambda c: change_config(c, d_model="x"), ["config.json", "MarianMTModel"]),
    "no end token": (
        lambda c: (change_config(c, eos_token_id=None), (c / "generation_config.json").unlink()),
        ["config.json", "eos_token_id"],
    ),
    "architectures": (lambda c: change_config(c, architectures={}), ["config.json", "architecture ?"]),
    "no tokenizer": (
        lambda c: ((c / "source.spm").unlink(), (c / "vocab.json").unlink()),
        ["lacks source.spm, vocab.json", "tokenizer"],
    ),
    "vocabulary": (lambda c: (c / "vocab.json").write_text("[1]"), ["vocab.json", "not a JSON object"]),
    "shard": (
        lambda c: (
            (c / "model.safetensors").unlink(),
            (c / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}'),
        ),
        ["lacks model-1.safetensors"],
    ),
    "shard without a name": (
        lambda c: (
            (c / "model.safetensors").unlink(),
            (c / "model.safetensors.index.json").write_text('{"weight_map": {"a": 5}}'),
        ),
        ["index.json", "weight_map"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoint_gets_one_sentence(checkpoint: Path, case: str) -> None:
    damage, expected = BAD[case]
    damage(checkpoint)
    with pytest.raises(EdgemtError) as raised:
        read = open_checkpoint(checkpoint)
        check_architecture(read)
        read.check()
        build(read, languages(read)[1])
    message = str(raised.value)
    assert "\n" not in message and str(checkpoint) in message
    assert all(part in message for part in expected), message
    assert not Path("/tmp/edgemt-was-here").exists()


def test_pickle_shards_and_half_precision_read_alike(good: Path, tmp_path: Path) -> None:
    tensors = load_file(good / "model.safetensors")
    base = tmp_path / "base"
    shutil.copytree(good, base, ignore=shutil.ignore_patterns("model.safetensors"))
    pickled = Path(shutil.copytree(base, tmp_path / "pickled"))
    torch.save(tensors, pickled / "pytorch_model.bin")
    sharded = Path(shutil.copytree(base, tmp_path / "sharded"))
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, sharded / file)
    index = {name: file for file, part in parts.items() for name in part}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    reference = read_checkpoint(good)
    for directory in (pickled, sharded):
        read = read_checkpoint(directory)
        assert read.tensors.keys() == reference.tensors.keys()
        assert all(np.array_equal(read.tensors[name], reference.tensors[name]) for name in read.tensors)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, base / "model.safetensors")
    halved = read_checkpoint(base)
    assert halved.dtypes == ("bfloat16",)
    assert all(array.dtype == np.float32 for array in halved.tensors.values())


def test_languages_come_from_tokens_configuration_or_the_user(tmp_path: Path) -> None:
    student = read_checkpoint(marian.student(tmp_path / "student"))
    assert languages(student) == ([["zh", "en"], ["en", "zh"]], {"zh-en": [4], "en-zh": [3]})
    assert languages(student, "zh-en")[0] == [["zh", "en"]]
    opus = read_checkpoint(marian.opus(tmp_path / "opus"))
    assert languages(opus) == ([["zh", "en"]], {"zh-en": []})
    with pytest.raises(UsageError, match="zh-en,en-zh"):
        languages(student, "zh,en")
    with pytest.raises(EdgemtError, match="no token for the target fr"):
        languages(student, "zh-fr,fr-zh")


def test_licence_and_training_facts_are_kept(checkpoint: Path) -> None:
    assert read_checkpoint(checkpoint).licence.startswith("unknown")
    (checkpoint / "README.md").write_text("---\nlanguage: zh\nlicense: apache-2.0\n---\n# Model\n")
    (checkpoint / "edgemt.json").write_text('{"precision": "bf16", "steps": 7}')
    read = read_checkpoint(checkpoint)
    assert read.licence == "apache-2.0" and read.training() == {
        "written_by": "edgemt train",
        "precision": "bf16",
        "steps": 7,
        "masters": "the model's own FP32 weights, averaged over steps",
        "weights": "model.safetensors",
    }
