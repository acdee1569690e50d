"""How many threads are fastest here, found out by measuring."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemt.bench.contenders import BundleContender, Mode
from edgemt.bench.facts import machine_facts
from edgemt.bench.measure import Progress, measure, silent
from edgemt.bench.workload import Sentence
from edgemt.bundle import Bundle
from edgemt.translator import Translator

TEXTS, ROUNDS = 24, 3  # each count is tried with so many texts, so many times
NEARLY = 1.02  # the fewest threads that are within 2 % of the fastest are taken


def candidates(usable: int) -> list[int]:
    """1, 2, 3 … up to four, then fewer and fewer of them, up to `usable`."""
    found = [n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if n < usable]
    return [*found, usable]


def usable_cores() -> int:
    """CPUs that this process may use, by affinity and by the control group's limit."""
    facts = machine_facts(1)
    allowed = len(facts["affinity"] or []) or os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(facts["cpu_quota"] or allowed)))


def choose_threads(
    bundles: Sequence[Bundle],
    mode: Mode,
    sentences: Sequence[Sentence],
    counts: Sequence[int],
    progress: Progress = silent,
) -> tuple[int, list[dict[str, Any]]]:
    """The count for all bundles, and what was measured: `threads`, `p50_ms`, `ratio` to the first count.

    `ratio` is the geometric mean over bundles and texts; the texts are spread over the whole workload.
    """
    step = max(1, math.ceil(len(sentences) / TEXTS))
    chosen = sentences[::step]
    contenders = [
        BundleContender(f"{count} threads", Translator(bundle, threads=count), mode)
        for count in counts
        for bundle in bundles
    ]
    samples = measure(
        contenders,
        chosen,
        rounds=ROUNDS,
        warmup=1,
        progress=lambda _, share: progress("trying threads", share),
    )
    ms = np.median(samples.ms, axis=2).reshape(len(counts), -1)
    ratios = np.exp((np.log(ms) - np.log(ms[0])).mean(axis=1))
    tried = [
        {"threads": count, "p50_ms": float(np.median(times)), "ratio": float(ratio)}
        for count, times, ratio in zip(counts, ms, ratios, strict=True)
    ]
    best = next(i for i, ratio in enumerate(ratios) if ratio <= ratios.min() * NEARLY)
    return counts[best], tried
