"""A whole model's weights in blocks of 4 bits, rounded product by product over calibration texts.

Each product is rounded for what it really gets: the layers before it are rounded already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from edgemt.calibration.gptq import Moments, Rounded, compensated, second_moments
from edgemt.calibration.layerwise import Layerwise, Product
from edgemt.export.graphs.graphset import Array, GraphSet
from edgemt.export.rows import Row
from edgemt.export.targets.weight_only import Blocks, nearest, unpack
from edgemt.family import Family, Request
from edgemt.manifest import Model


class Result(NamedTuple):
    """One product's weights: bits, and the error of its outputs as `Rounded` has it."""

    product: str
    bits: int
    error: float
    nearest: float


@dataclass(frozen=True)
class Compensation:
    """The blocks of every rounded weight by its name, and what became of each product."""

    blocks: Mapping[str, Blocks]
    results: Sequence[Result]
    texts: int
    tokens: int

    def rounding(self, name: str, load: Callable[[], Array], bits: int, block: int) -> Blocks:
        """See `Rounding` in weight_only.py. What was not rounded here (head, embedding): to the nearest."""
        return self.blocks[name] if name in self.blocks else nearest(name, load, bits, block)

    def to_json(self) -> dict[str, Any]:
        return {
            "method": "gptq",
            "texts": self.texts,
            "tokens": self.tokens,
            "products": [result._asdict() for result in self.results],
        }


def compensate(
    graphs: GraphSet, texts: Sequence[Sequence[int]], bits: Mapping[str, int], block: int
) -> Compensation:
    """Round the weights of all products but the head, to bits[node] or else 4.

    `texts` are token ids, prompt and answer. Raises EdgemtError if a value in the model is not finite.
    """
    blocks: dict[str, Blocks] = {}
    results: list[Result] = []
    layers = Layerwise(graphs, texts, torch.get_num_threads())
    progress = tqdm(total=len(layers.pieces) - 1, desc="rounding", disable=None)

    def visit(product: Product, inputs: list[Array]) -> Array:
        weight = np.asarray(graphs.weights[product.weight]).T
        moments = Moments(second_moments(inputs), block, product.node)
        wanted = bits.get(product.node, 4)
        found: Rounded = compensated(weight, moments, wanted)
        blocks[product.weight] = found.blocks
        results.append(Result(product.node, wanted, found.error, found.nearest))
        progress.update()
        return unpack(found.blocks, wanted, weight.shape[1]).T

    layers.run(visit)
    progress.close()
    return Compensation(blocks, results, len(texts), sum(map(len, texts)))


def answered(family: Family, model: Model, rows: Sequence[Row]) -> list[list[int]]:
    """Token ids of each row's prompt, its translation behind it, and the end."""
    texts = []
    for row in rows:
        request = Request(row.source, row.source_lang, row.target_lang)
        answer = family.tokenizer.encode_target(row.target)[: family.limit]
        texts.append([*family.source(request, family.limit), model.start_id, *answer, model.eos_id])
    return texts
