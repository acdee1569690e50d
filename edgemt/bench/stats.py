"""Percentiles and their bootstrap confidence intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

RESAMPLES, LEAST_RESAMPLES = 1000, 200
MOST_DRAWN = 100_000_000  # values drawn in all, so that a soak of hours is not followed by hours of this
SEED = 20260101
LEVEL = 0.95
BLOCK = 2_000_000  # resampled values held at once (16 MB)


def percentile(values: F64, q: float) -> float:
    """The smallest of `values` that at least `q` per cent of them do not exceed, so one that was measured."""
    return float(np.percentile(values, q, method="inverted_cdf"))


def percentile_intervals(times: F64, qs: list[float]) -> list[tuple[float, float]]:
    """95 % intervals for the percentiles `qs` of `times` [sentences, rounds].

    A two-stage bootstrap (Davison & Hinkley, Bootstrap Methods, 1997, section 3.8): sentences are drawn with
    replacement, then rounds of each, because the rounds of one sentence are no independent sentences. So an
    interval says how far the figure would move with other sentences of the same kind in another run.
    """
    sentences, rounds = times.shape
    rng = np.random.default_rng(SEED)
    block = max(1, BLOCK // times.size)
    resamples = min(RESAMPLES, max(LEAST_RESAMPLES, MOST_DRAWN // times.size))
    found = []
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        row = rng.integers(sentences, size=(count, sentences, 1))
        column = rng.integers(rounds, size=(count, sentences, rounds))
        drawn = times[row, column].reshape(count, -1)
        found.append(np.percentile(drawn, qs, axis=1, method="inverted_cdf"))
    return [_bounds(values) for values in np.concatenate(found, axis=1)]


def ratio_interval(times: F64, base: F64) -> tuple[float, tuple[float, float]]:
    """How many times as long as `base` the sentences take, and its 95 % interval; both [sentences, rounds].

    The geometric mean over sentences of the ratio of their medians; the bootstrap draws sentences.
    """
    logs = np.log(np.median(times, axis=1) / np.median(base, axis=1))
    drawn = np.random.default_rng(SEED).integers(len(logs), size=(RESAMPLES, len(logs)))
    return float(np.exp(logs.mean())), _bounds(np.exp(logs[drawn].mean(axis=1)))


def _bounds(values: F64) -> tuple[float, float]:
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
