"""Texts that arrive at a rate, whether or not the last one is done: an open loop.

A text's latency counts from the moment it was due, so that the time it waits for those before it counts.
Measured from when its translation began, a slow translator would look fast (coordinated omission).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgemt.bench.stats import F64, percentile

KINDS = ("poisson", "fixed")
SEED = 29  # of the gaps between arrivals


@dataclass(frozen=True)
class Arrivals:
    """`rate` texts a second: "fixed" at equal distances, "poisson" at random ones (no memory)."""

    rate: float
    kind: Literal["poisson", "fixed"] = "poisson"

    def schedule(self, count: int) -> F64:
        """When each of `count` texts is due, in seconds from the start; the same every time."""
        if self.kind == "fixed":
            return np.arange(count) / self.rate
        return np.cumsum(np.random.default_rng(SEED).exponential(1 / self.rate, count))


def queueing(arrivals: Arrivals, ms: F64, wait_ms: F64, at_s: F64) -> dict[str, Any]:
    """What the arrivals met: latency and waiting of a contender's texts, and when each was due, in one order.

    `utilisation` is the share of the time in which it translated; `capacity_per_s` what it could do without
    a pause; `queue` counts the texts not yet done when one arrives.
    """
    order = np.argsort(at_s, axis=None)
    due, waited = at_s.ravel()[order], wait_ms.ravel()[order] / 1000
    service = ms.ravel()[order] / 1000 - waited
    ends = due + waited + service
    waiting = _unfinished(due, ends)
    # From the first arrival on, one mean gap after the last: the time that these texts were to take.
    elapsed = max(float(ends[-1]), float(due[-1]) + 1 / arrivals.rate) - float(due[0])
    return {
        "offered_per_s": arrivals.rate,
        "capacity_per_s": float(1 / service.mean()),
        "overloaded": bool(service.mean() * arrivals.rate >= 1),
        "utilisation": float(service.sum() / elapsed),
        "wait_p50_ms": percentile(waited * 1000, 50),
        "wait_p99_ms": percentile(waited * 1000, 99),
        "wait_max_ms": float(waited.max() * 1000),
        "queue_mean": float(waiting.mean()),
        "queue_max": int(waiting.max()),
    }


def _unfinished(due: F64, ends: F64) -> NDArray[np.int64]:
    """For each arrival, how many before it were not done; texts are done in the order in which they come."""
    return np.arange(len(due)) - np.searchsorted(ends, due, side="right")
