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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemt.bench.arrivals import Arrivals
from edgemt.bench.conditions import Conditions, observe
from edgemt.bench.contenders import Contender
from edgemt.bench.power import watts
from edgemt.bench.sampler import INTERVAL_S, Moment, Sampler
from edgemt.bench.stats import F64
from edgemt.bench.workload import Sentence

SEED = 13  # of the order of the sentences
TURN = 12  # sentences a contender translates before the next one has its turn
REST_S = 2.0  # before the clock starts, where the board tells its power: what it draws at rest
LOOKS = 1200  # at most about so many looks at the board in a soak

Progress = Callable[[str, float], None]  # (what is going on, share done)


class Turn(NamedTuple):
    """A stretch of the run that belongs to one contender, in seconds since the clock started."""

    place: int
    begin_s: float
    end_s: float


@dataclass(frozen=True)
class Samples:
    """All three arrays [contenders, sentences, rounds]."""

    ms: F64  # milliseconds from text (open loop: from when it was due) to text
    wait_ms: F64  # of that, before its translation began; 0 in a closed loop
    at_s: F64  # when each began (open loop: was due), in seconds since the clock started
    faults: NDArray[np.int64]  # [contenders, 2] minor and major page faults during their turns
    turns: list[Turn]
    timeline: list[Moment]  # what the sampler saw, from before the clock started
    before: Conditions
    after: Conditions


def silent(what: str, share: float) -> None:
    """Nobody looks at the progress."""


def measure(
    contenders: Sequence[Contender],
    sentences: Sequence[Sentence],
    *,
    rounds: int = 5,
    warmup: int = 1,
    seconds: float | None = None,
    arrivals: Arrivals | None = None,
    progress: Progress = silent,
) -> Samples:
    """Time `translate` on every text, `rounds` times a contender, after `warmup` unkept rounds.

    A closed loop: the next text starts when the last one is done. Each round takes the texts in a new order
    (fixed seed), in turns of `TURN` for each contender, so that whatever drifts on the machine falls on all
    alike. With several each turn begins with one text that is not kept: the one before has filled the caches.
    With `seconds` it goes on for as many whole rounds as it takes to fill them, two at least.

    With `arrivals` an open loop: all rounds of a contender are one stream of texts that are due at their
    times, whether or not the last one is done; the contenders follow each other.

    The garbage collector is off while the clock runs; it runs between rounds (of a stream: before and after).
    Raises whatever a contender raises.
    """
    run = _Run(contenders, sentences, progress)
    interval = max(INTERVAL_S, (seconds or 0) / LOOKS)
    with _no_garbage_collector(), Sampler(interval) as sampler:
        for number in range(warmup):
            progress("warming up", number / warmup)
            run.closed_round(kept=False)
        if watts() is not None:
            time.sleep(REST_S)
        outside = [_outside_faults(contender) for contender in contenders]
        before = observe()
        run.start()
        if arrivals:
            for place in range(len(contenders)):
                run.stream(place, rounds, arrivals)
        else:
            number = 0
            while number < rounds if seconds is None else number < 2 or run.now_s() < seconds:
                progress("measuring", number / rounds if seconds is None else run.now_s() / seconds)
                run.closed_round(kept=True)
                number += 1
        after = observe()
        timeline = sampler.stop(run.origin)
    for place, contender in enumerate(contenders):
        run.faults[place] += _outside_faults(contender) - outside[place]
    ms, wait_ms, at_s = (np.stack(values, axis=2) for values in (run.ms, run.wait_ms, run.at_s))
    return Samples(ms, wait_ms, at_s, run.faults, run.turns, timeline, before, after)


class _Run:
    """The rounds so far. Its lists hold an array [contenders, sentences] a round."""

    def __init__(
        self, contenders: Sequence[Contender], sentences: Sequence[Sentence], progress: Progress
    ) -> None:
        self.contenders, self.sentences, self.progress = contenders, sentences, progress
        self.shape = len(contenders), len(sentences)
        self.rng = np.random.default_rng(SEED)
        self.ms: list[F64] = []
        self.wait_ms: list[F64] = []
        self.at_s: list[F64] = []
        self.faults = np.zeros((len(contenders), 2), np.int64)
        self.turns: list[Turn] = []
        self.origin = self.rounds = 0

    def start(self) -> None:
        self.origin = time.perf_counter_ns()

    def now_s(self) -> float:
        return (time.perf_counter_ns() - self.origin) / 1e9

    def closed_round(self, kept: bool) -> None:
        ms, at_s = np.zeros(self.shape), np.zeros(self.shape)
        order = self.rng.permutation(len(self.sentences))
        count = len(self.contenders)
        for turn, start in enumerate(range(0, len(order), TURN)):
            texts = order[start : start + TURN]
            for step in range(count):
                place = (self.rounds + turn + step) % count
                contender = self.contenders[place]
                if count > 1:
                    contender.translate(self.sentences[texts[-1]])
                with self._turn(place, kept):
                    for index in texts:
                        begin, end = _time(contender, self.sentences[index])
                        ms[place, index] = (end - begin) / 1e6
                        at_s[place, index] = (begin - self.origin) / 1e9
        self.rounds += 1
        if kept:
            self.ms.append(ms)
            self.at_s.append(at_s)
            self.wait_ms.append(np.zeros(self.shape))
        gc.collect()

    def stream(self, place: int, rounds: int, arrivals: Arrivals) -> None:
        """All rounds of one contender, each text not before it is due."""
        while len(self.ms) < rounds:
            for values in (self.ms, self.wait_ms, self.at_s):
                values.append(np.zeros(self.shape))
        rng = np.random.default_rng(SEED)  # the same order for every contender
        size = len(self.sentences)
        order = [(n, index) for n in range(rounds) for index in rng.permutation(size)]
        due_ns = (arrivals.schedule(len(order)) * 1e9).astype(np.int64)
        contender = self.contenders[place]
        if self.rounds == 0:  # without a warm-up the first text would be late for all that follow
            contender.translate(self.sentences[order[0][1]])
        gc.collect()
        with self._turn(place, kept=True):
            first = time.perf_counter_ns() + 1_000_000
            for number, ((n, index), due) in enumerate(zip(order, (first + due_ns).tolist(), strict=True)):
                if number % TURN == 0:
                    self.progress("measuring", (place + number / len(order)) / len(self.contenders))
                ahead = due - time.perf_counter_ns()
                if ahead > 0:
                    time.sleep(ahead / 1e9)
                begin, end = _time(contender, self.sentences[index])
                self.ms[n][place, index] = (end - due) / 1e6
                self.wait_ms[n][place, index] = (begin - due) / 1e6
                self.at_s[n][place, index] = (due - self.origin) / 1e9

    @contextmanager
    def _turn(self, place: int, kept: bool) -> Iterator[None]:
        had, begin = _own_faults(), self.now_s()
        yield
        if kept:
            self.turns.append(Turn(place, begin, self.now_s()))
            self.faults[place] += _own_faults() - had


def _time(contender: Contender, sentence: Sentence) -> tuple[int, int]:
    """Nanoseconds at which a translation began and ended."""
    translate = contender.translate
    begin = time.perf_counter_ns()
    translate(sentence)
    return begin, time.perf_counter_ns()


@contextmanager
def _no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _own_faults() -> NDArray[np.int64]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([usage.ru_minflt, usage.ru_majflt], np.int64)


def _outside_faults(contender: Contender) -> NDArray[np.int64]:
    counted = getattr(contender, "faults", None)
    return np.array(counted() if counted else (0, 0), np.int64)
