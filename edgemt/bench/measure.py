"""The clock: text after text, round after round, the contenders taking turns.

    samples = measure(contenders, sentences, rounds=5, warmup=1)
    samples.ms  # [contenders, sentences, rounds] milliseconds

A contender is anything with a `label` and `translate(sentence)`; see contenders.py. One that runs processes
of its own may have `faults() -> (minor, major)`, the page faults of those since they started.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemt.bench.conditions import Conditions, frequencies, observe, temperature
from edgemt.bench.contenders import Contender
from edgemt.bench.stats import F64
from edgemt.bench.workload import Sentence

SEED = 13  # of the order of the sentences
TURN = 12  # sentences a contender translates before the next one has its turn

Progress = Callable[[str, float], None]  # (what is going on, share done)


@dataclass(frozen=True)
class Moment:
    """The machine between two rounds."""

    at_s: float  # since the clock started
    temperature_c: float | None
    frequency_mhz: float | None  # of the fastest core


@dataclass(frozen=True)
class Samples:
    ms: F64  # [contenders, sentences, rounds] milliseconds from text to text
    at_s: F64  # the same shape: when each began, in seconds since the clock started
    faults: NDArray[np.int64]  # [contenders, 2] minor and major page faults during their turns
    timeline: list[Moment]
    before: Conditions
    after: Conditions


def silent(what: str, share: float) -> None:
    """Nobody looks at the progress."""


def measure(
    contenders: Sequence[Contender],
    sentences: Sequence[Sentence],
    *,
    rounds: int,
    warmup: int,
    progress: Progress = silent,
) -> Samples:
    """Time `translate` on every text, `rounds` times a contender, after `warmup` unkept rounds.

    A closed loop: the next text starts when the last one is done. Each round takes the texts in a new order
    (fixed seed), in turns of `TURN` for each contender, so that whatever drifts on the machine falls on all
    alike. With several each turn begins with one text that is not kept: the one before has filled the caches.
    The garbage collector is off while the clock runs and is run between rounds.
    Raises whatever a contender raises.
    """
    ms = np.zeros((len(contenders), len(sentences), rounds))
    at_s = np.zeros_like(ms)
    faults = np.zeros((len(contenders), 2), np.int64)
    rng = np.random.default_rng(SEED)
    timeline: list[Moment] = []
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for number in range(-warmup, rounds):
            if number == 0:
                outside = [_outside_faults(contender) for contender in contenders]
                before, origin = observe(), time.perf_counter_ns()
                timeline.append(_moment(origin))
            order = rng.permutation(len(sentences))
            for turn, start in enumerate(range(0, len(order), TURN)):
                done = (number + warmup + start / order.size) / (warmup + rounds)
                progress("warming up" if number < 0 else "measuring", done)
                texts = order[start : start + TURN]
                for place in _takes_turns(len(contenders), turn + number):
                    if len(contenders) > 1:
                        contenders[place].translate(sentences[texts[-1]])
                    had = _own_faults()
                    for index in texts:
                        begin, end = _time(contenders[place], sentences[index])
                        if number >= 0:
                            ms[place, index, number] = (end - begin) / 1e6
                            at_s[place, index, number] = (begin - origin) / 1e9
                    if number >= 0:
                        faults[place] += _own_faults() - had
            if number >= 0:
                timeline.append(_moment(origin))
            gc.collect()
        after = observe()
        for place, contender in enumerate(contenders):
            faults[place] += _outside_faults(contender) - outside[place]
    finally:
        gc.enable()
        gc.unfreeze()
    return Samples(ms, at_s, faults, timeline, before, after)


def _time(contender: Contender, sentence: Sentence) -> tuple[int, int]:
    """Nanoseconds at which a translation began and ended."""
    translate = contender.translate
    begin = time.perf_counter_ns()
    translate(sentence)
    return begin, time.perf_counter_ns()


def _takes_turns(count: int, turn: int) -> Iterator[int]:
    return ((turn + step) % count for step in range(count))


def _own_faults() -> NDArray[np.int64]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([usage.ru_minflt, usage.ru_majflt], np.int64)


def _outside_faults(contender: Contender) -> NDArray[np.int64]:
    counted = getattr(contender, "faults", None)
    return np.array(counted() if counted else (0, 0), np.int64)


def _moment(origin: int) -> Moment:
    return Moment((time.perf_counter_ns() - origin) / 1e9, temperature(), max(frequencies(), default=None))
