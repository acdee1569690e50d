"""What a decoder-only model keeps of each token, by layer, head and channel: for a cache of 8 bits.

Keys are looked at by channel (KIVI, https://arxiv.org/abs/2402.02750): some channels have a large bias, in
all tokens alike. A key is turned by its position (RoPE), so that calibration sentences, which are short, show
only a part of where its slower channels go: each key that comes by is turned to positions all over the
model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemt.export.graphs.graphset import Canonical

POSITIONS = 48  # that each key is turned to


class Range(NamedTuple):
    """Lowest and highest value of each head and channel, f32 [heads, size]."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]


class Keys(NamedTuple):
    """Of one layer: the tensor that is turned, keys behind queries, and what normalises it behind that."""

    state: str
    tensor: str
    weight: NDArray[np.float32] | None  # [kv heads, size]


def keys(canonical: Canonical) -> Iterator[Keys]:
    """Each layer's, in a canonical graph of decoder-only models."""
    inputs = {node.output[0]: node.input[0] for node in canonical.graphs["step"].graph.node if node.output}
    for spec in canonical.states:
        part, layer = spec.input.split(".")
        if part == "past_key":
            name = f"layers.{layer}.self_attn"
            turned = inputs[f"{name}.first"]
            weight = canonical.weights.get(f"{name}.qk_norm.weight")
            behind = weight is not None and turned != f"{name}.qk_norm"
            yield Keys(spec.input, turned, np.asarray(weight)[-int(spec.shape[2]) :] if behind else None)


class CacheRanges:
    """A listener (`Tap`) for the `tensors` of a model; `ranges` are those of its states by their input."""

    def __init__(self, canonical: Canonical) -> None:
        self._keys = {entry.tensor: entry for entry in keys(canonical)}
        self._values = {spec.output: spec.input for spec in canonical.states if "value" in spec.input}
        self._heads = {spec.input: int(spec.shape[2]) for spec in canonical.states}
        cos, sin = (np.asarray(canonical.weights[f"rotary.{part}.table"]) for part in ("cos", "sin"))
        places = np.linspace(0, len(cos) - 1, POSITIONS).astype(np.intp)
        self._cos, self._sin = cos[places], sin[places]
        self.ranges: dict[str, Range] = {}

    @property
    def tensors(self) -> list[str]:
        return [*self._keys, *self._values]

    def __call__(self, role: str, tensors: Mapping[str, NDArray[Any]], /) -> None:
        for name, array in tensors.items():
            if name in self._values:
                self._add(self._values[name], array)
            elif name in self._keys:
                entry = self._keys[name]
                self._add(entry.state, self._turned(array[..., -self._heads[entry.state] :, :], entry.weight))

    def _turned(self, key: NDArray[Any], weight: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """[.., heads, size] -> [.., POSITIONS, heads, size]."""
        if weight is not None:  # the norm does not change as the key turns
            key = key / np.sqrt(np.square(key).mean(-1, keepdims=True) + 1e-12)
        half = key.shape[-1] // 2
        swapped = np.concatenate([key[..., half:], key[..., :half]], -1)
        turned = key[..., None, :, :] * self._cos[:, None] + swapped[..., None, :, :] * self._sin[:, None]
        return turned if weight is None else turned * weight

    def _add(self, state: str, array: NDArray[np.float32]) -> None:
        rows = array.reshape(-1, *array.shape[-2:])
        low, high = rows.min(0), rows.max(0)
        if state in self.ranges:
            low = np.minimum(low, self.ranges[state].low)
            high = np.maximum(high, self.ranges[state].high)
        self.ranges[state] = Range(low, high)
