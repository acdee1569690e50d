"""Streaming observers: any number of arrays of any shape in, one clipping range out, in flat memory.

All three observers keep the same statistics, an exact minimum and maximum and a histogram, and differ in the
range they choose. The histogram's bins are [i·w, (i+1)·w) for i in [-BINS, BINS), with w a power of two:
w = 2**e / BINS, where 2**(e-1) <= max|x| < 2**e. When a larger value comes, e grows and 2, 4, 8 … neighbours
become one bin: its edges are edges of old bins, so that counts stay exact, and the result depends on the
set of values alone, never on their order or how they were cut into arrays. w <= max|x| / (BINS / 2): about an
eighth of a step of U8.

onnxruntime's histogram collectors stack whole tensors before they look at them, so that caches whose length
changes break them and memory grows with the calibration set
(https://github.com/microsoft/onnxruntime/issues/10503).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemt.calibration.quantspec import affine
from edgemt.errors import EdgemtError

BINS = 4096  # on each side of zero: 64 KiB of counts a tensor
BLOCK = 16384  # values buffered before they are counted: a step yields tiny arrays
PERCENTILE = 99.999


class Histogram:
    """Counts over power-of-two bins around zero. `width` is 0.0 until a value other than zero was seen."""

    def __init__(self) -> None:
        self.counts = np.zeros(2 * BINS, np.int64)
        self.exponent: int | None = None

    @property
    def width(self) -> float:
        return 0.0 if self.exponent is None else math.ldexp(1.0, self.exponent) / BINS

    def add(self, values: NDArray[np.float32], largest: float) -> None:
        """Count finite `values`, whose largest magnitude is `largest`."""
        if largest > 0:
            exponent = math.frexp(largest)[1]
            if self.exponent is None:
                self.exponent = exponent
            elif exponent > self.exponent:
                self._merge(exponent - self.exponent)
                self.exponent = exponent
        if self.exponent is None:
            self.counts[BINS] += values.size
            return
        # In float64, where scaling by a power of two is exact for every pair of float32 values.
        scaled = values * np.float64(1.0 / self.width)
        np.floor(scaled, out=scaled)
        scaled += BINS
        self.counts += np.bincount(scaled.astype(np.intp), minlength=2 * BINS)

    def _merge(self, doublings: int) -> None:
        """Make each bin 2**doublings times as wide; the sign of a value never changes its side."""
        factor = 2 ** min(doublings, BINS.bit_length() - 1)
        kept = BINS // factor
        merged = np.zeros_like(self.counts)
        merged[BINS - kept : BINS + kept] = self.counts.reshape(-1, factor).sum(axis=1)
        self.counts = merged

    def error(self, low: float, high: float, bits: int) -> float:
        """Expected squared error of the affine quantiser over [low, high].

        Values are taken as uniform within a bin. Exact for that density: with u = x / scale and k the nearest
        level within the range, the integral of (u - k)² from 0 to u is k/12 + (u - k)³/3, clipped or not.
        """
        used = self.counts > 0
        if self.exponent is None or not used.any():
            return 0.0
        scale, zero = affine(low, high, bits)
        first, last = used.argmax(), used.size - used[::-1].argmax()
        edges = np.arange(first - BINS, last - BINS + 1) * (self.width / scale)
        nearest = np.clip(np.rint(edges), -zero, 2**bits - 1 - zero)
        away = edges - nearest
        integral = nearest / 12 + away * away * away / 3  # numpy's ** 3 takes ten times as long
        counts = self.counts[first:last]
        return float(counts @ np.diff(integral)) * scale**3 / self.width / float(counts.sum())

    def power(self) -> float:
        """Mean square of the values, taken as uniform within a bin."""
        edges = np.arange(-BINS, BINS + 1, dtype=np.float64)
        return float(self.counts @ np.diff(edges**3)) / 3 * self.width**2 / max(1, int(self.counts.sum()))


class Observer(ABC):
    """What one tensor's values were. `tensor` is its name, for messages."""

    def __init__(self, tensor: str, bits: int = 8) -> None:
        self.tensor = tensor
        self.bits = bits
        self.low, self.high = math.inf, -math.inf
        self.histogram = Histogram()
        self._block = np.empty(BLOCK, np.float32)
        self._filled = 0

    def update(self, array: ArrayLike) -> None:
        """Take in an array of any shape. Raises EdgemtError, now or later, if a value is not finite."""
        values = np.asarray(array).reshape(-1)
        start = 0
        while start < values.size:
            taken = min(values.size - start, BLOCK - self._filled)
            self._block[self._filled : self._filled + taken] = values[start : start + taken]
            self._filled += taken
            start += taken
            if self._filled == BLOCK:
                self.flush()

    def flush(self) -> None:
        """Count what is buffered."""
        if self._filled == 0:
            return
        values = self._block[: self._filled]
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise EdgemtError(
                f"the tensor {self.tensor} has a value that is not finite (NaN or infinite) in FP32; "
                "check the checkpoint's weights, and train it again if they overflow"
            )
        self.histogram.add(values, max(-low, high, 0.0))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._filled = 0

    def range(self) -> tuple[float, float]:
        """(low, high) with low <= 0 <= high. Raises EdgemtError if no value was seen."""
        self.flush()
        if self.low > self.high:
            raise EdgemtError(f"the tensor {self.tensor} was never seen; give more calibration sentences")
        low, high = self.choose()
        return min(low, 0.0), max(high, 0.0)

    @abstractmethod
    def choose(self) -> tuple[float, float]:
        """The range this observer prefers, within [self.low, self.high] and zero."""

    def sqnr_db(self, low: float, high: float) -> float | None:
        """Signal power over quantisation error, in dB, over [low, high]; None for an all-zero tensor."""
        self.flush()
        power, error = self.histogram.power(), self.histogram.error(low, high, self.bits)
        return 10 * math.log10(power / error) if power > 0 and error > 0 else None


class MinMax(Observer):
    """Everything that was seen, exactly."""

    def choose(self) -> tuple[float, float]:
        return self.low, self.high


class Percentile(Observer):
    """Two-sided: each tail loses 100 - PERCENTILE per cent of the values at most.

    Within one bin width of numpy's exact percentiles (methods "lower" and "higher"), rounded outwards.
    """

    percentile = PERCENTILE

    def choose(self) -> tuple[float, float]:
        cumulative = np.cumsum(self.histogram.counts)
        last = int(cumulative[-1]) - 1
        upper = math.ceil(last * (self.percentile / 100))
        lower = math.floor(last * ((100 - self.percentile) / 100))
        low = (int(np.searchsorted(cumulative, lower, side="right")) - BINS) * self.histogram.width
        high = (int(np.searchsorted(cumulative, upper, side="right")) - BINS + 1) * self.histogram.width
        return max(low, self.low), min(high, self.high)


class Mse(Observer):
    """The range with the least expected squared quantisation error; by that measure never worse than MinMax.

    First both ends are drawn in together, then each alone, coarsely and finely, until nothing improves. The
    criterion is the usual one (Nagel et al. 2021, https://arxiv.org/abs/2106.08295, section 3.1).
    """

    coarse = np.linspace(1, 1 / 64, 64)
    fine = np.linspace(-7 / 512, 7 / 512, 15)

    def choose(self) -> tuple[float, float]:
        widest = min(self.low, 0.0), max(self.high, 0.0)

        def error(low_part: float, high_part: float) -> float:
            return self.histogram.error(widest[0] * low_part, widest[1] * high_part, self.bits)

        best, parts = min((error(part, part), (part, part)) for part in self.coarse)
        improved = True
        while improved:
            improved = False
            for side in (side for side in (0, 1) if widest[side] != 0):
                near = parts[side] + self.fine
                for part in (*self.coarse, *near[(near > 0) & (near < 1)]):
                    trial = (part, parts[1]) if side == 0 else (parts[0], part)
                    found = error(*trial)
                    if found < best:
                        best, parts, improved = found, trial, True
        return float(widest[0] * parts[0]), float(widest[1] * parts[1])


OBSERVERS: dict[str, type[Observer]] = {"minmax": MinMax, "percentile": Percentile, "mse": Mse}
