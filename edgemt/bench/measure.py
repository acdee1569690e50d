"""The clock: one text at a time, round after round, the bundles taking turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgemt.bench.conditions import Conditions, frequencies, observe, temperature
from edgemt.bench.stats import F64
from edgemt.bench.workload import Sentence
from edgemt.translator import Translator

SEED = 13  # of the order of the sentences
TURN = 12  # sentences a bundle translates before the next one has its turn

Progress = Callable[[str, float], None]  # (what is going on, share done)


@dataclass(frozen=True)
class Counts:
    """Tokens of each sentence as one bundle counts them; lists of length [sentences]."""

    source: list[int]
    target: list[int]


@dataclass(frozen=True)
class Moment:
    """The machine between two rounds."""

    at_s: float  # since the clock started
    temperature_c: float | None
    frequency_mhz: float | None  # of the fastest core


@dataclass(frozen=True)
class Samples:
    ms: F64  # [bundles, sentences, rounds] milliseconds from text to text
    at_s: F64  # the same shape: when each began, in seconds since the clock started
    timeline: list[Moment]
    before: Conditions
    after: Conditions


def count_tokens(translator: Translator, sentences: Sequence[Sentence], beam: int | None) -> Counts:
    """Translate every text once, off the clock: counts its tokens and touches all of the model's memory."""
    source, target = [], []
    for sentence in sentences:
        segments = list(
            translator.segments(
                sentence.source, source_lang=sentence.source_lang, target_lang=sentence.target_lang, beam=beam
            )
        )
        source.append(sum(segment.source_tokens for segment in segments))
        target.append(sum(segment.target_tokens for segment in segments))
    return Counts(source, target)


def measure(
    translators: Sequence[Translator],
    sentences: Sequence[Sentence],
    *,
    rounds: int,
    warmup: int,
    beam: int | None,
    progress: Progress,
) -> Samples:
    """Time `Translator.translate` on every text, `rounds` times a bundle, after `warmup` unkept rounds.

    A closed loop: the next text starts when the last one is done. Each round takes the texts in a new order
    (fixed seed), in turns of `TURN` for each bundle, so that whatever drifts on the machine falls on all
    bundles alike. With several bundles each turn begins with one text that is not kept: the model before it
    has filled the caches. The garbage collector is off while the clock runs and is run between rounds.
    """
    ms = np.zeros((len(translators), len(sentences), rounds))
    at_s = np.zeros_like(ms)
    rng = np.random.default_rng(SEED)
    timeline: list[Moment] = []

    def translate(bundle: int, index: int) -> tuple[int, int]:
        sentence, translator = sentences[index], translators[bundle]
        begin = time.perf_counter_ns()
        translator.translate(
            sentence.source, source_lang=sentence.source_lang, target_lang=sentence.target_lang, beam=beam
        )
        return begin, time.perf_counter_ns()

    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for number in range(-warmup, rounds):
            if number == 0:
                before, origin = observe(), time.perf_counter_ns()
                timeline.append(_moment(origin))
            order = rng.permutation(len(sentences))
            for turn, start in enumerate(range(0, len(order), TURN)):
                progress(
                    "warming up" if number < 0 else "measuring",
                    _share(number, start, order.size, warmup, rounds),
                )
                texts = order[start : start + TURN]
                for step in range(len(translators)):
                    bundle = (turn + number + step) % len(translators)
                    if len(translators) > 1:
                        translate(bundle, texts[-1])
                    for index in texts:
                        begin, end = translate(bundle, index)
                        if number >= 0:
                            ms[bundle, index, number] = (end - begin) / 1e6
                            at_s[bundle, index, number] = (begin - origin) / 1e9
            if number >= 0:
                timeline.append(_moment(origin))
            gc.collect()
        after = observe()
    finally:
        gc.enable()
        gc.unfreeze()
    return Samples(ms, at_s, timeline, before, after)


def _share(number: int, start: int, size: int, warmup: int, rounds: int) -> float:
    return (number + warmup + start / size) / (warmup + rounds)


def _moment(origin: int) -> Moment:
    return Moment((time.perf_counter_ns() - origin) / 1e9, temperature(), max(frequencies(), default=None))
