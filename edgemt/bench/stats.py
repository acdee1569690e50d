"""Percentiles and their bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

RESAMPLES, LEAST_RESAMPLES = 1000, 200
MOST_DRAWN = 100_000_000  # values drawn in all, so that a soak of hours is not followed by hours of this
SEED = 20260101
LEVEL = 0.95
METHOD = "inverted_cdf"
BLOCK = 2_000_000  # resampled values held at once (16 MB)


def percentile(values: F64, q: float) -> float:
    """The smallest of `values` that at least `q` per cent of them do not exceed, so one that was measured."""
    return float(np.percentile(values, q, method=METHOD))


def percentile_intervals(times: F64, qs: list[float]) -> list[tuple[float, float]]:
    """95 % intervals for the percentiles `qs` of `times` [sentences, rounds].

    A two-stage bootstrap (Davison & Hinkley, Bootstrap Methods, 1997, section 3.8): sentences are drawn with
    replacement, then rounds of each, because the rounds of one sentence are no independent sentences. So an
    interval says how far the figure would move with other sentences of the same kind in another run.
    """
    found = [
        np.percentile(times[rows, _again(rng, times, rows)].reshape(len(rows), -1), qs, axis=1, method=METHOD)
        for rng, rows in _resamples(times)
    ]
    return [_bounds(values) for values in np.concatenate(found, axis=1)]


def ratio_interval(times: F64, base: F64) -> tuple[float, tuple[float, float]]:
    """How many times as long as `base` the sentences take, and its 95 % interval; both [sentences, rounds].

    The geometric mean over sentences of the ratio of their medians; the bootstrap draws sentences, the same
    on both sides, then rounds of each.
    """
    ratio = np.log(np.median(times, axis=1) / np.median(base, axis=1)).mean()
    found = []
    for rng, rows in _resamples(times):
        ours, theirs = (np.median(side[rows, _again(rng, side, rows)], axis=2) for side in (times, base))
        found.append(np.log(ours / theirs).mean(axis=1))
    return float(np.exp(ratio)), _bounds(np.exp(np.concatenate(found)))


def _resamples(times: F64) -> Iterator[tuple[np.random.Generator, NDArray[np.int64]]]:
    """Drawn sentences [resamples, sentences, 1], block by block, and the generator for their rounds."""
    rng = np.random.default_rng(SEED)
    block = max(1, BLOCK // times.size)
    resamples = min(RESAMPLES, max(LEAST_RESAMPLES, MOST_DRAWN // times.size))
    for start in range(0, resamples, block):
        yield rng, rng.integers(len(times), size=(min(block, resamples - start), len(times), 1))


def _again(rng: np.random.Generator, times: F64, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rounds drawn for each of the drawn sentences: [resamples, sentences, rounds]."""
    return rng.integers(times.shape[1], size=(*rows.shape[:2], times.shape[1]))


def _bounds(values: F64) -> tuple[float, float]:
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
