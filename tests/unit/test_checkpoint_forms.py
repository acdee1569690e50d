"""Checkpoints of hand-written loops and of edgemt itself: weights under any usual key, prefix and type."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import marian
import numpy as np
import pytest
import torch
from amp_loops import TorchAmp, assert_exported
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from training_fixtures import tiny_config, write_tiny_data

from edgemt.bundle import open_bundle
from edgemt.cli import main
from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.forms.amp_dict import MODEL
from edgemt.export.checkpoints.read import read_checkpoint
from edgemt.training.loop import Run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marian.student(tmp_path_factory.mktemp("forms") / "base")


@pytest.fixture(scope="module")
def folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration and the tokenizer, for a checkpoint file to lie beside."""
    leave = shutil.ignore_patterns("model.safetensors")
    return Path(shutil.copytree(base, tmp_path_factory.mktemp("run") / "run", ignore=leave))


@pytest.fixture(scope="module")
def trained(base: Path) -> TorchAmp:
    return TorchAmp(base)


def weights(trained: TorchAmp) -> dict[str, torch.Tensor]:
    return trained.model.state_dict()


def test_torch_amp_loop(trained: TorchAmp, folder: Path) -> None:
    saved = {
        "epoch": 1,
        "global_step": 3,
        "model_state_dict": weights(trained),
        "optimizer_state_dict": trained.optimizer.state_dict(),
        "scaler_state_dict": trained.scaler.state_dict(),
        "best_bleu": np.float64(31.5),  # a class that torch.load does not take
    }
    torch.save(saved, folder / "amp.pt")
    read = read_checkpoint(folder / "amp.pt")
    assert read.form == "torch.amp"
    assert read.training() == {
        "precision": "fp16-o1",
        "steps": 3,
        "epochs": 1,
        "optimizer_steps": 2,  # the first overflowed
        "loss_scale": 1024.0,
        "steps_since_overflow": 2,
        "written_by": "torch.amp",
        "masters": "the model's own FP32 weights",
        "weights": "amp.pt (model_state_dict)",
    }
    assert_exported(read, weights(trained))


PREFIXES = [
    "",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "net.",
    "model.",
    "core.module.",
]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(MODEL),
    prefix=st.sampled_from(PREFIXES),
    dropped=st.sets(
        st.sampled_from(["lm_head.weight", "model.decoder.embed_tokens.weight", "final_logits_bias"])
    ),
    compiled_inside=st.booleans(),
    others=st.dictionaries(
        st.sampled_from(["loss", "args", "lr_scheduler", "rng"]), st.integers() | st.text()
    ),
)
def test_any_usual_spelling_reads_alike(
    trained: TorchAmp,
    folder: Path,
    key: str,
    prefix: str,
    dropped: set[str],
    compiled_inside: bool,
    others: dict,
) -> None:
    state = OrderedDict(
        (prefix + (n.replace("encoder.layers", "encoder._orig_mod.layers") if compiled_inside else n), tensor)
        for n, tensor in weights(trained).items()
        if n not in dropped
    )
    torch.save({**others, key: state}, folder / "any.pt")
    read = read_checkpoint(folder / "any.pt")
    expected = {n: t for n, t in weights(trained).items() if n in read.tensors}
    assert set(read.tensors) == set(expected) and "model.shared.weight" in expected
    assert all((read.tensors[n] == t.numpy()).all() for n, t in expected.items())


def test_a_file_alone_and_its_configuration_elsewhere(trained: TorchAmp, base: Path, tmp_path: Path) -> None:
    torch.save(weights(trained), tmp_path / "weights.pth")
    save_file({n: t.clone() for n, t in weights(trained).items()}, tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        with pytest.raises(EdgemtError, match=r"has no config\.json.*--config-from"):
            read_checkpoint(tmp_path / name)
        assert_exported(read_checkpoint(tmp_path / name, base), weights(trained))


def test_export_of_a_file(trained: TorchAmp, base: Path, tmp_path: Path) -> None:
    torch.save(
        {"net": weights(trained), "scaler": trained.scaler.state_dict(), "step": 3}, tmp_path / "run.pt"
    )
    arguments = [tmp_path / "run.pt", "--config-from", base, "--fp32", "-o", tmp_path / "bundle"]
    assert main(["export", *map(str, arguments)]) == 0
    provenance = open_bundle(tmp_path / "bundle").manifest.provenance
    assert provenance["checkpoint"]["name"] == "run.pt" and provenance["checkpoint"]["form"] == "torch.amp"
    assert provenance["training"]["loss_scale"] == 1024.0 and provenance["training"]["precision"] == "fp16-o1"
    assert provenance["training"]["weights"] == "run.pt (net)"
    report = (tmp_path / "bundle" / "report.html").read_text(encoding="utf-8")
    assert "run.pt (net)" in report and "fp16-o1" in report


def test_opus_fine_tunes(tmp_path: Path) -> None:
    """What those of OPUS-MT models bring: a bias in BF16, the head doubled, positions stored."""
    base = marian.opus(tmp_path / "base")
    model = marian.MarianMTModel.from_pretrained(base)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["final_logits_bias"] = state["final_logits_bias"].bfloat16()
    assert "lm_head.weight" in state and "model.encoder.embed_positions.weight" in state
    save_file(state, base / "model.safetensors")
    read = read_checkpoint(base)
    assert read.dtypes == ("bfloat16", "float32")
    assert (read.tensors["final_logits_bias"] == state["final_logits_bias"].float().numpy()).all()
    state["lm_head.weight"][5] += 1
    save_file(state, base / "model.safetensors")
    with pytest.raises(EdgemtError, match=r"ties them: model.shared.weight and lm_head.weight: set tie_word"):
        read_checkpoint(base)


def test_all_that_is_wrong_is_named_at_once(trained: TorchAmp, folder: Path) -> None:
    state = {name: tensor.clone() for name, tensor in weights(trained).items()}
    del state["model.encoder.layers.0.fc1.bias"]
    state["extra.weight"] = torch.zeros(3)
    state["model.decoder.layers.0.fc2.weight"] = torch.zeros(7, 64)
    state["model.encoder.layers.1.fc2.bias"][3] = torch.nan
    state["model.decoder.layers.0.fc1.bias"] = state["model.decoder.layers.0.fc1.bias"].half() * torch.inf
    state["model.decoder.layers.0.fc1.bias"].nan_to_num_(0, torch.inf, -torch.inf)
    torch.save(state, folder / "bad.pt")
    with pytest.raises(EdgemtError) as raised:
        read_checkpoint(folder / "bad.pt")
    for part in (
        "missing: model.encoder.layers.0.fc1.bias;",
        "unexpected: extra.weight;",
        "mis-shaped: model.decoder.layers.0.fc2.weight is [7, 64] and should be [32, 64];",
        "NaN or infinite: model.encoder.layers.1.fc2.bias;",
        "overflowed in FP16: model.decoder.layers.0.fc1.bias:",
    ):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("precision", ["bf16", "fp16-o1"])
def test_run_of_edgemt_train(tmp_path: Path, precision: str) -> None:
    run = Run(tiny_config(4, precision=precision), write_tiny_data(tmp_path / "data"), tmp_path / "state")
    run.train()
    read = read_checkpoint(tmp_path / "state")
    assert read.form == "edgemt train, run" and read.amp["precision"] == precision and read.amp["steps"] == 4
    assert read.amp["skipped_steps"] == run.stepper.skipped
    assert_averaged(read.tensors, run)
    run.write_checkpoint(tmp_path / "written")
    written = read_checkpoint(tmp_path / "written")
    assert written.form == "edgemt train, safetensors" and written.amp["steps"] == 4
    assert_averaged(written.tensors, run)
    record = json.loads((tmp_path / "written" / "edgemt.json").read_text())
    assert written.amp["loss_scale"] == record["loss_scale"]
    shutil.rmtree(tmp_path / "state" / "model")
    with pytest.raises(EdgemtError, match="--export-checkpoint"):
        read_checkpoint(tmp_path / "state")


def assert_averaged(tensors: Any, run: Run) -> None:
    model = dict(run.model.named_parameters())
    different = 0
    for name, average in run.average.weights.items():
        assert (tensors[name] == average.numpy()).all()
        different += not torch.equal(average, model[name])
    assert different > 10  # or the last step's weights would do as well
