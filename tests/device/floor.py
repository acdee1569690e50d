"""The least instructions that a translation's matrix products with weights can take on a Cortex-A76."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import onnx

from edgemt.errors import EdgemtError

PER_DOT = 16  # multiplications of one SDOT, and bytes of one load
PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "MatMulNBits", "DynamicQuantizeMatMul")
THROUGH = ("DequantizeLinear", "Transpose", "Cast", "Identity")  # from a weight to the product that uses it


def floor(bundle: Path, sentence_tokens: Sequence[int], target_tokens: int, beam: int) -> int:
    """One SDOT and one 16-byte load of weights for each 16 multiplications, all else being free.

    The encoder has a row a source token, language prefix and end included; the step a row a target token of
    each hypothesis, ends included.
    """
    encoder_rows = sum(sentence_tokens) + 2 * len(sentence_tokens)
    step_rows = (target_tokens + len(sentence_tokens)) * beam
    macs = encoder_rows * weights(bundle / "encoder.onnx") + step_rows * weights(bundle / "step.onnx")
    return 2 * macs // PER_DOT


@cache
def weights(file: Path) -> int:
    """How many weights the graph multiplies each row with: K × N of every product with a constant."""
    graph = onnx.load(str(file), load_external_data=False).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    total = 0
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            sides = {a.name: a.i for a in node.attribute}
            total += sides["K"] * sides["N"]
        elif node.op_type in PRODUCTS:
            name = node.input[3 if node.op_type == "QLinearMatMul" else 1]
            while name not in sizes and name in made_by and made_by[name].op_type in THROUGH:
                name = made_by[name].input[0]
            total += sizes.get(name, 0)
    if not total:
        raise EdgemtError(f"{file} has no matrix product with constant weights that this tool knows")
    return total
