"""What 8 bits do to one product, over sampled rows: with one range for the tensor, or one for each row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemt.calibration.quantspec import affine
from edgemt.calibration.samples import Sample
from edgemt.export.targets.quantize import S8_PAIRED, quantize_weight

COLUMNS = 256  # of a weight that are looked at, evenly spaced: a column's error is its own
# A product is static where its error (squared, over the output's power, mean over rows) is not above the
# first of these, or the other times that with a range for each row.
SMALL, TIMES = 1e-3, 3.0


class Errors(NamedTuple):
    """Squared error over power, of each row's output, mean over rows: the worse of all and of the largest."""

    static: float
    by_rows: float


class Product(NamedTuple):
    """Rows [n, K] of a product's input, the largest ones, the range of each channel, and some columns."""

    rows: NDArray[np.float32]
    largest: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    weight: NDArray[np.float32]  # [K, columns]

    @classmethod
    def of(cls, sample: Sample, weight: NDArray[np.float32]) -> Product:
        columns = np.linspace(0, weight.shape[1] - 1, min(COLUMNS, weight.shape[1])).astype(np.intp)
        return cls(sample.rows, sample.largest, sample.low, sample.high, weight[:, columns])

    def scaled(self, factor: NDArray[np.float32]) -> Product:
        """The same product with its input divided by `factor` [K] and its weight multiplied."""
        rows, largest, low, high = (part / factor for part in self[:4])
        return Product(rows, largest, low, high, self.weight * factor[:, None])


def product_errors(product: Product, limits: tuple[float, float] | None = None) -> Errors:
    """Errors with INT8 weights and both kinds of activations; `limits` is static's range (None: all seen)."""
    codes, scale = quantize_weight(product.weight, S8_PAIRED, 1)
    rounded = codes.astype(np.float32) * scale
    low, high = limits or (min(0.0, float(product.low.min())), max(0.0, float(product.high.max())))
    static = by_rows = 0.0
    for rows in (product.rows, product.largest):
        exact = rows @ product.weight
        power = np.maximum(np.square(exact).sum(1), 1e-12)

        def error(quantised: NDArray[np.float32], exact=exact, power=power) -> float:
            return float((np.square(quantised @ rounded - exact).sum(1) / power).mean())

        static = max(static, error(through_bytes(rows, low, high)))
        size = np.maximum(np.abs(rows).max(1, keepdims=True), 1e-12)
        by_rows = max(by_rows, error(through_bytes(rows / size, -1.0, 1.0) * size))
    return Errors(static, by_rows)


def through_bytes(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Values as U8 and back, by `affine(low, high)`."""
    scale, zero = affine(low, high)
    return (np.clip(np.rint(values / np.float32(scale)) + zero, 0, 255) - zero) * np.float32(scale)


def fits_static(static: float, by_rows: float) -> bool:
    return static <= max(SMALL, TIMES * by_rows)
