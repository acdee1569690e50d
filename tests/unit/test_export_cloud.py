"""FP16 for a server's GPU: what is half and what is not, and that it still is the model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from test_export_memory import bundle as write
from untrained import untrained

from edgemt.bundle import open_bundle
from edgemt.cli import main
from edgemt.errors import EdgemtError
from edgemt.export import cloud
from edgemt.export.checkpoints.read import read_checkpoint
from edgemt.export.families import causal
from edgemt.export.rows import Row
from edgemt.export.targets import target
from edgemt.family import Request
from edgemt.prompts import prompt
from edgemt.translator import load

torch.set_num_threads(1)
EXPORT = ["--fp16", "--target", "cloud"]


@pytest.fixture(scope="module", params=["hunyuan_v1_dense", "qwen2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp(request.param) / "checkpoint", request.param)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    assert main(["export", str(checkpoint), *EXPORT, "-o", str(checkpoint.parent / "bundle")]) == 0
    return checkpoint.parent / "bundle"


def test_weights_and_cache_are_half_and_sums_are_not(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert (manifest.target, manifest.precision) == ("cloud", "fp16")
    assert {spec.dtype for spec in manifest.states} == {"float16"}
    model = onnx.load(bundle / "step.onnx")
    onnx.checker.check_model(model)
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)
    }
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert (
        kinds["past_key.0"] == kinds["present_value.1"] == half
        and kinds["logits"] == kinds["self_bias"] == single
    )
    large = [init for init in model.graph.initializer if np.prod(init.dims) > 5000]
    assert large and {init.data_type for init in large} == {half}
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    made = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    assert made["layers.1"] == made["norm.square"] == made["layers.0.self_attn.weights"] == single
    assert made["layers.1.mlp.hidden"] == made["layers.1.self_attn.query"] == half


def test_it_was_compared_and_says_where_it_has_not_run(bundle: Path) -> None:
    found = open_bundle(bundle).manifest.gate["half"]
    assert (
        found["passed"]
        and 0 < found["relative_error"] < 1e-2
        and found["equal"] >= 0.99 * found["tokens"] > 90
    )
    assert 0 < found["largest"] < 65504 and found["executed"] == "validated on the CPU, not executed on a GPU"


def test_the_script_in_the_bundle_says_what_edgemt_says(bundle: Path) -> None:
    translator = load(bundle)
    source, text = translator.family, "我对青霉素过敏。"
    ids = source.source(Request(text, "zh", "en"))
    asked = prompt(text, "zh", "en")
    encoded = translator.program.encode(np.array([ids], np.int32), np.array([len(ids)], np.int32))
    model = translator.bundle.manifest.model
    (expected,) = translator.program.greedy(
        encoded, np.array([[model.start_id]], np.int32), 20, np.array([model.eos_id], np.int32)
    )
    script = [sys.executable, bundle / "run_cuda.py", asked, "--provider", "CPU", "--most", "20"]
    done = subprocess.run(list(map(str, script)), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == translator.tokenizer.decode(expected.tolist()).strip()
    refused = subprocess.run([*map(str, script[:3]), "--provider", "CUDA"], capture_output=True, text=True)
    assert refused.returncode == 1 and "this ONNX Runtime has no CUDAExecutionProvider" in refused.stderr


def test_a_value_beyond_half_precision_is_named(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    opened = read_checkpoint(checkpoint)
    canonical = causal.build(opened, {})
    name = "layers.1.mlp.gate_up_proj.weight"
    canonical.weights[name] = np.asarray(canonical.weights[name]) * np.float32(3000)
    write(opened, canonical, tmp_path)
    with pytest.raises(EdgemtError, match=re.escape("FP16 bundle is not the model")) as caught:
        cloud.check(tmp_path, bundle, [Row("zh", "en", "我对青霉素过敏。", "")])
    assert "(layers.1.mlp.hidden)" in str(caught.value)
    canonical.weights[name] = np.asarray(canonical.weights[name]) * np.float32(1e4)
    with pytest.raises(EdgemtError, match=f"FP16 cannot hold the weights in {name}"):
        target("cloud").lower(canonical, "fp16").graphs.write(tmp_path)


def test_what_is_not_for_a_server(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        (["--fp16"], "add --target cloud"),
        (["--int4", "--target", "cloud"], "with --fp16 or --fp32"),
    ):
        assert main(["export", str(checkpoint), *arguments, "-o", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
