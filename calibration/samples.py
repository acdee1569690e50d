"""What enters the products by weights: some rows of each tensor, and each channel's extremes.

A row is what one token has. The rows are a uniform sample of all that came by (reservoir sampling, Vitter's
algorithm R), and beside them those of the largest magnitude: the first token of a prompt is an attention sink
(https://arxiv.org/abs/2309.17453), whose activations are a thousand times those of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32Rows = NDArray[np.float32]

ROWS = 128  # of a tensor; with 28 layers of 1536 and 8960 channels they take 200 MB
LARGEST = 8  # further rows


class Sample:
    """Rows [.., channels] of one tensor, in memory that does not grow."""

    def __init__(self, channels: int) -> None:
        self.low, self.high = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
        self.seen = 0
        self._rows = np.empty((ROWS, channels), np.float32)
        self._largest = np.empty((0, channels), np.float32)
        self._draw = np.random.default_rng(0)

    def update(self, array: NDArray[Any]) -> None:
        rows = array.reshape(-1, array.shape[-1])
        np.minimum(self.low, rows.min(0), out=self.low)
        np.maximum(self.high, rows.max(0), out=self.high)
        for row in rows:
            place = self.seen if self.seen < ROWS else int(self._draw.integers(self.seen + 1))
            if place < ROWS:
                self._rows[place] = row
            self.seen += 1
        both = np.concatenate([self._largest, rows])
        self._largest = both[np.argsort(-np.abs(both).max(1), kind="stable")[:LARGEST]]

    @property
    def rows(self) -> F32Rows:
        """[n, channels]: the uniform sample."""
        return self._rows[: self.seen]

    @property
    def largest(self) -> F32Rows:
        """[n, channels]: those with the largest value."""
        return self._largest


class Samples:
    """A listener (`Tap`) that samples every tensor it is told of, by name."""

    def __init__(self) -> None:
        self.tensors: dict[str, Sample] = {}

    def __call__(self, role: str, tensors: Mapping[str, NDArray[Any]], /) -> None:
        for name, array in tensors.items():
            if name not in self.tensors:
                self.tensors[name] = Sample(array.shape[-1])
            self.tensors[name].update(array)
