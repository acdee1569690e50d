"""Decoder-only models in static INT8: what is fused, what is folded, what it says, and its cache."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from causal_fixtures import learnt_by_heart

from edgemt.bundle import open_bundle
from edgemt.cli import main

LENIENT = ["--max-bleu-drop", "200", "--max-new-critical", "1000"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learnt_by_heart(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "bundle"
    assert main(["export", str(checkpoint), "--int8", *LENIENT, "-o", str(out)]) == 0
    return out


def test_no_weight_is_unpacked_when_it_runs(bundle: Path, tmp_path: Path) -> None:
    """Otherwise every step would unpack all weights, five times as slow."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(bundle / "step.onnx"), options)
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("MatMul", "FusedMatMul", "Gemm"):
            assert "DequantizeLinear" not in {made_by.get(name) for name in node.input}, node.name
    layers = [layer for layer in open_bundle(bundle).manifest.layers if layer["op"] == "MatMul"]
    counts = {
        kind: sum(node.op_type == kind for node in graph.node)
        for kind in ("MatMulIntegerToFloat", "MatMulNBits")
    }
    assert counts["MatMulIntegerToFloat"] > 0 and sum(counts.values()) == len(layers)
