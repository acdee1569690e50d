"""A whole model's weights in blocks of 4 bits, rounded product by product over calibration texts.

Each product is rounded for what it really gets: the layers before it are rounded already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from edgemt.calibration.gptq import Moments, compensated, output_error, second_moments
from edgemt.calibration.layerwise import Layerwise, Product
from edgemt.calibration.mixed import LOW
from edgemt.export.graphs.graphset import Array, GraphSet
from edgemt.export.rows import Row
from edgemt.export.targets.weight_only import Blocks, block_of, nearest, unpack
from edgemt.family import Family, Request
from edgemt.manifest import Model

SAMPLE = 512  # tokens over which errors are told


class Result(NamedTuple):
    """One product's weights: bits, and the relative error of its outputs over some of the texts' tokens."""

    product: str
    bits: int
    error: float
    nearest: float  # what rounding to the nearest would have given


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
    roots = [np.sqrt(counts) for counts in shares(texts)]
    progress = tqdm(total=len(layers.pieces) - 1, desc="rounding", disable=None)

    def visit(product: Product, inputs: list[Array]) -> Array:
        weight = np.asarray(graphs.weights[product.weight]).T
        weighed = (x[root > 0] * root[root > 0, None] for x, root in zip(inputs, roots, strict=True))
        wanted = bits.get(product.node, LOW)
        size = block_of(weight.shape[1], wanted, block)
        moments = Moments(second_moments(weighed), size, product.node)
        plain = nearest(product.weight, lambda: weight, wanted, size)
        found = compensated(weight, moments, wanted)
        some = spread(inputs)
        error, before = (
            output_error(unpack(each, wanted, weight.shape[1]), weight, some) for each in (found, plain)
        )
        blocks[product.weight] = found
        results.append(Result(product.node, wanted, error, before))
        progress.update()
        return unpack(found, wanted, weight.shape[1]).T

    layers.run(visit)
    progress.close()
    return Compensation(blocks, results, len(texts), sum(map(len, texts)))


def shares(texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    """How often each token of each text counts: where texts begin alike, the first stands for all.

    What enters a product at a token depends on what is before it only, so that the instruction that all texts
    share need be multiplied out once. It counts for all of them: every answer hangs on it, and when it was to
    count once, the weights were worse (SmolLM2-135M diverged from FP32 by .29 and not by .21).
    """
    prefixes = [[tuple(text[: i + 1]) for i in range(len(text))] for text in texts]
    left = Counter(prefix for many in prefixes for prefix in many)
    return [np.array([left.pop(prefix, 0) for prefix in many], np.float32) for many in prefixes]


def spread(inputs: Sequence[Array]) -> Array:
    """At most SAMPLE of all tokens [tokens, K], evenly taken."""
    whole = np.concatenate(inputs)
    return np.ascontiguousarray(whole[:: -(-len(whole) // SAMPLE)])


def answered(family: Family, model: Model, rows: Sequence[Row]) -> list[list[int]]:
    """Token ids of each row's prompt, its translation behind it, and the end."""
    texts = []
    for row in rows:
        request = Request(row.source, row.source_lang, row.target_lang)
        answer = family.tokenizer.encode_target(row.target)[: family.limit]
        texts.append([*family.source(request, family.limit), model.start_id, *answer, model.eos_id])
    return texts
