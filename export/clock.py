"""Which variant is fastest? A sentence goes through all of them in turn: a busy machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgemt.export.rows import Row
from edgemt.translator import Translator

SENTENCES, ROUNDS = 40, 7
LEAST_SENTENCES, LEAST_ROUNDS = 8, 3  # whatever they take
SECONDS = 120  # that all of it should take: a large model needs seconds for one sentence


@dataclass(frozen=True)
class Latency:
    """Times of single sentences in ms (each the median of its rounds), and the time relative to FP32's.

    `ratio` is the median over rounds, between its quartiles `ratio_low` and `ratio_high`; below 1 is faster.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


def affordable(each: float) -> tuple[int, int]:
    """How many sentences and rounds to clock; one sentence takes all variants together `each` seconds."""
    sentences = max(LEAST_SENTENCES, min(SENTENCES, int(SECONDS / (ROUNDS + 1) / each)))
    return sentences, max(LEAST_ROUNDS, min(ROUNDS, int(SECONDS / sentences / each) - 1))


def clock(
    translators: Mapping[str, Translator], rows: Sequence[Row], rounds: int, reference: str = "fp32"
) -> dict[str, Latency]:
    """Time every translator on every row, one sentence at a time, greedily; the first round is a warm-up."""
    seconds = np.zeros((len(translators), rounds + 1, len(rows)))
    order = list(enumerate(translators.values()))
    for turn in range(rounds + 1):
        for i, row in enumerate(rows):
            for variant, translator in order:
                start = time.perf_counter()
                translator.translate_many([row.source], row.source_lang, row.target_lang, beam=1, batch=1)
                seconds[variant, turn, i] = time.perf_counter() - start
            order = order[1:] + order[:1]  # none is always the first to find the caches cold
    seconds = seconds[:, 1:]
    base = seconds[list(translators).index(reference)].sum(axis=1)
    results = {}
    for name, times in zip(translators, seconds, strict=True):
        low, middle, high = np.quantile(times.sum(axis=1) / base, [0.25, 0.5, 0.75])
        p50, p90, p99 = np.quantile(np.median(times, axis=0), [0.5, 0.9, 0.99]) * 1000
        results[name] = Latency(*(round(float(value), 4) for value in (p50, p90, p99, middle, low, high)))
    return results
