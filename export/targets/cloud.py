"""A server's GPU: FP16 for ONNX Runtime's CUDA and TensorRT providers, with the cache in FP16 too.

In FP32 stay what FP16 overflows or loses: the sum of what the layers add up (massive activations of thousands
beside values below one, Sun et al. 2024, https://arxiv.org/abs/2402.17762), the squares of RMSNorm and its
epsilon, and softmax.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from onnx import NodeProto

from edgemt.export.graphs.graphset import Canonical
from edgemt.export.targets import PLAIN, Calibrated, Lowered, onnxruntime
from edgemt.export.targets.float16 import to_float16
from edgemt.export.targets.onnxruntime import activations

__all__ = ["activations", "lower"]

SINGLE = {"Pow", "ReduceMean", "Sqrt", "Div", "Softmax", "LayerNormalization"}
SUMS = re.compile(r"layers\.\d+(\.attended)?|.*\.(shifted|masked)")  # residual stream, norms, scores
SCRIPT = Path(__file__).parents[1] / "run_cuda.py"


def lower(canonical: Canonical, precision: str, found: Calibrated = PLAIN) -> Lowered:
    """Lower to "fp32" or "fp16"."""
    if precision == "fp32":
        return onnxruntime.lower(canonical, precision, found)
    halved = {name for spec in canonical.states for name in (spec.input, spec.output)}
    graphs = to_float16(canonical, single, halved)
    lowered = onnxruntime.add_heads(graphs, canonical.model.suppress, canonical.model.vocab_size)
    return Lowered(
        lowered,
        onnxruntime.layer_table(canonical, graphs, None),
        [dataclasses.replace(spec, dtype="float16") for spec in canonical.states],
        {SCRIPT.name: SCRIPT.read_text(encoding="utf-8")},
    )


def single(node: NodeProto) -> bool:
    """Whether a node of the canonical graph computes in FP32."""
    norm = node.op_type == "Mul" and node.input[0].endswith(".unit")
    return node.op_type in SINGLE or norm or bool(SUMS.fullmatch(node.name))
