"""Where a translation's time goes, and when its first token is there: probes at the boundaries of the stages.

These passes are apart from those whose times are the headline. The parts of a text's time are the calls of
`Program.encode` (encoder), the rest of the family's `generate` (decode: graph and search), and what is left
(text: splitting into sentences, finding terms, tokenising, detokenising).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from edgemt.bench.contenders import BundleContender
from edgemt.bench.measure import Progress, silent
from edgemt.bench.stats import F64
from edgemt.bench.workload import Sentence
from edgemt.family import Family
from edgemt.runtimes.protocol import Program

LOOKS = 100  # times that a stage is measured, over all texts, if they are fewer


@dataclass(frozen=True)
class Stages:
    """Milliseconds of each text and pass, [texts, passes]. `first`: from the text to its first token."""

    text: F64
    encoder: F64
    decode: F64
    first: F64

    def medians(self, index: int) -> dict[str, float]:
        """Of one text, over the passes."""
        parts = {"text": self.text, "encoder": self.encoder, "decode": self.decode, "first_token": self.first}
        return {name: round(float(np.median(part[index])), 4) for name, part in parts.items()}


class _Watch:
    """Collects what the probes see while one text is translated. All in nanoseconds."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.encode = self.generate = 0
        self.first: int | None = None  # when the first step of the search came back
        self.fused = False  # the first token came inside a loop that no probe sees
        self.begun = time.perf_counter_ns()

    def stepped(self) -> None:
        if self.first is None and not self.fused:
            self.first = time.perf_counter_ns()


class _Probe:
    """Stands in front of a part of the translator, and is it except for what a subclass watches."""

    def __init__(self, part: Any, watch: _Watch) -> None:
        self.part, self.watch = part, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)


class _Session(_Probe):
    def step(self, *args: Any, **names: Any) -> Any:
        found = self.part.step(*args, **names)
        self.watch.stepped()
        return found


class _Program(_Probe):
    def encode(self, *args: Any, **names: Any) -> Any:
        begin = time.perf_counter_ns()
        found = self.part.encode(*args, **names)
        self.watch.encode += time.perf_counter_ns() - begin
        return found

    def open(self, *args: Any, **names: Any) -> _Session:
        return _Session(self.part.open(*args, **names), self.watch)

    def greedy(self, *args: Any, **names: Any) -> Any:
        self.watch.fused |= self.watch.first is None
        return self.part.greedy(*args, **names)


class _Family(_Probe):
    def generate(self, *args: Any, **names: Any) -> Any:
        begin = time.perf_counter_ns()
        found = self.part.generate(*args, **names)
        self.watch.generate += time.perf_counter_ns() - begin
        return found


def stages(
    contender: BundleContender, sentences: Sequence[Sentence], rounds: int, progress: Progress = silent
) -> Stages:
    """Translate every text with probes, `rounds` times or until there are `LOOKS` looks in all.

    The fused greedy loop shows no single token: its first one is timed by a translation of no more than that.
    """
    watch = _Watch()
    probed = copy.copy(contender)
    probed.translator = translator = copy.copy(contender.translator)
    translator.program = cast(Program, _Program(translator.program, watch))
    translator.family = cast(Family, _Family(translator.family, watch))
    short = copy.copy(probed)
    short.translator = copy.copy(translator)
    short.translator.options = dataclasses.replace(
        translator.options, max_length_factor=0.0, max_length_extra=1
    )
    passes = max(1, min(rounds, math.ceil(LOOKS / len(sentences))))
    found = np.zeros((4, len(sentences), passes))
    for number in range(passes):
        for index, sentence in enumerate(sentences):
            progress(f"stages of {contender.label}", (number + index / len(sentences)) / passes)
            watch.start()
            probed.translate(sentence)
            total = time.perf_counter_ns() - watch.begun
            encode, generate, first = watch.encode, watch.generate, watch.first
            if watch.fused:
                watch.start()
                next((s for s in short.segments(sentence) if s.translated), None)
                first = time.perf_counter_ns()
            elapsed = total if first is None else first - watch.begun
            found[:, index, number] = total - generate, encode, generate - encode, elapsed
    return Stages(*(found / 1e6))


def summary(stages: Stages, chosen: Sequence[int], target_tokens: Sequence[int]) -> dict[str, Any]:
    """The figures of the texts `chosen`, ready for JSON. `target_tokens` [all texts]."""
    rows = list(chosen)
    parts = {
        "text": stages.text[rows],
        "encoder": stages.encoder[rows],
        "decode": stages.decode[rows],
    }
    total = sum(float(part.sum()) for part in parts.values())
    first = stages.first[rows]
    after = total - float(first.sum())
    # After its first token a text takes one step for each of the others and for the end.
    steps = sum(target_tokens[row] for row in rows) * first.shape[1]
    return {
        "shares": {name: float(part.sum()) / total for name, part in parts.items()},
        "first_token_p50_ms": float(np.median(first)),
        "ms_per_next_token": max(after, 0.0) / steps if steps else None,
    }
