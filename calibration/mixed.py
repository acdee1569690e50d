"""Which products get 8 bits instead of 4: those whose error costs the least to be rid of.

The error that 4 bits (rounded to the nearest) make in the outputs of a product, relative to them, is taken
over a few texts with the FP32 model. It is weighed by how large what its branch adds is beside the stream
that it is added to: some branches add little. What counts is the squared error that a byte more saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from edgemt.calibration.gptq import output_error
from edgemt.calibration.layerwise import Layerwise, Product
from edgemt.export.graphs.graphset import Array, GraphSet
from edgemt.export.targets.weight_only import block_of, nearest, unpack

LOW, HIGH = 4, 8  # bits
TEXTS = 16  # that the errors are taken over


class Sensitivity(NamedTuple):
    """A product by `weights` values, and the error that 4 bits make, relative to the stream it ends up in."""

    product: str
    weights: int
    error: float


def sensitivities(graphs: GraphSet, texts: Sequence[Sequence[int]], block: int) -> list[Sensitivity]:
    """Of every product but the head, in the graph's order."""
    found: list[Sensitivity] = []
    branch: list[Sensitivity] = []  # the products since the last sum
    sums = residual_sums(graphs)
    layers = Layerwise(graphs, texts[:TEXTS], torch.get_num_threads())

    def visit(product: Product, inputs: list[Array]) -> None:
        weight, x = np.asarray(graphs.weights[product.weight]).T, np.concatenate(inputs)
        rounded = unpack(
            nearest(product.weight, lambda: weight, LOW, block_of(weight.shape[1], LOW, block)),
            LOW,
            weight.shape[1],
        )
        branch.append(Sensitivity(product.node, weight.size, output_error(rounded, weight, x)))
        if name := sums.get(product.node):
            stream = np.concatenate([text[name].reshape(-1, len(weight)) for text in layers.texts])
            part = torch.from_numpy(x) @ torch.from_numpy(weight).T
            whole = (torch.from_numpy(stream) + part).norm(dim=1)
            share = float((part.norm(dim=1) / whole).mean())
            found.extend(each._replace(error=each.error * share) for each in branch)
            branch.clear()

    layers.run(visit)
    return found + branch


def residual_sums(graphs: GraphSet) -> dict[str, str]:
    """Products whose output is added to another tensor of the graph -> that tensor."""
    made: dict[str, str] = {}  # a product's output, or that with its bias -> the product
    sums: dict[str, str] = {}
    for node in graphs.graphs["step"].graph.node:
        if node.op_type == "MatMul":
            made[node.output[0]] = node.name
        elif node.op_type == "Add" and node.input[1] in graphs.weights and node.input[0] in made:
            made[node.output[0]] = made[node.input[0]]
        elif node.op_type == "Add" and node.input[1] in made:
            sums[made[node.input[1]]] = node.input[0]
    return sums


def choose(found: Iterable[Sensitivity], bits: float) -> dict[str, int]:
    """Products that get 8 bits, so that the weights of `found` have at most `bits` on average."""
    found = list(found)
    left = (bits - LOW) / (HIGH - LOW) * sum(each.weights for each in found)
    chosen: dict[str, int] = {}
    for each in sorted(found, key=lambda each: each.error**2 / each.weights, reverse=True):
        if each.weights <= left:
            chosen[each.product] = HIGH
            left -= each.weights
    return chosen
