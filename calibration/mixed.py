"""Which products get 8 bits instead of 4: those whose error costs the least to be rid of.

The error that 4 bits (rounded to the nearest) make in the outputs of a product is taken over a few
texts with the FP32 model. All products' errors are held to be equally bad, so what counts is the squared
error that a byte more saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from edgemt.calibration.gptq import output_error
from edgemt.calibration.layerwise import Layerwise, Product
from edgemt.export.graphs.graphset import Array, GraphSet
from edgemt.export.targets.weight_only import nearest, unpack

LOW, HIGH = 4, 8  # bits
TEXTS = 16  # that the errors are taken over


class Sensitivity(NamedTuple):
    """A product by `weights` values, and the relative error of its outputs where they have 4 bits."""

    product: str
    weights: int
    error: float


def sensitivities(graphs: GraphSet, texts: Sequence[Sequence[int]], block: int) -> list[Sensitivity]:
    """Of every product but the head, in the graph's order."""
    found: list[Sensitivity] = []

    def visit(product: Product, inputs: list[Array]) -> None:
        weight = np.asarray(graphs.weights[product.weight]).T
        rounded = unpack(nearest(product.weight, lambda: weight, LOW, block), LOW, weight.shape[1])
        error = output_error(rounded, weight, np.concatenate(inputs))
        found.append(Sensitivity(product.node, weight.size, error))

    Layerwise(graphs, texts[:TEXTS], torch.get_num_threads()).run(visit)
    return found


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
