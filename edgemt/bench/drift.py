"""Whether a long run got slower: its first minute against its last one, the same texts in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemt.bench.sampler import Moment
from edgemt.bench.stats import F64, percentile, ratio_interval

WINDOW_S = 60.0
LEAST = 0.03  # change that is called one


def drift(ms: F64, at_s: F64, timeline: Sequence[Moment]) -> dict[str, Any]:
    """`ms` and `at_s` [texts, rounds] of one contender. `verdict` is "slower", "faster" or "steady".

    A run of less than three minutes is compared by thirds. Whole rounds only, so that both ends have the same
    texts: `ratio` is the geometric mean over texts of how their medians changed, with its 95 % interval.
    """
    begin, end = float(at_s.min()), float(at_s.max())
    window = min(WINDOW_S, (end - begin) / 3)
    rounds = np.arange(ms.shape[1])
    first = rounds[at_s.max(axis=0) <= begin + window]
    last = rounds[at_s.min(axis=0) >= end - window]
    first, last = (first if len(first) else rounds[:1]), (last if len(last) else rounds[-1:])
    ratio, (low, high) = ratio_interval(ms[:, last], ms[:, first])
    verdict = "steady"
    if abs(ratio - 1) >= LEAST and not low <= 1 <= high:
        verdict = "slower" if ratio > 1 else "faster"
    return {
        "window_s": window,
        "first_p50_ms": percentile(ms[:, first], 50),
        "last_p50_ms": percentile(ms[:, last], 50),
        "ratio": ratio,
        "interval": [low, high],
        "verdict": verdict,
        "first": _board(timeline, begin, begin + window),
        "last": _board(timeline, end - window, end),
    }


def _board(timeline: Sequence[Moment], begin: float, end: float) -> dict[str, float | None]:
    """Mean temperature and frequency between two moments."""
    looks = [moment for moment in timeline if begin <= moment.at_s <= end]

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return {
        "temperature_c": mean([look.temperature_c for look in looks]),
        "frequency_mhz": mean([look.frequency_mhz for look in looks]),
    }
