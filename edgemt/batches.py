"""Many sentences at a time, each with what it gets alone; rows of like length are decoded together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from edgemt import text as texts
from edgemt.family import Family, Request
from edgemt.runtimes.protocol import Program
from edgemt.search import Hypothesis, SearchOptions
from edgemt.segment import Segment


class Way(Protocol):
    """One call's translator: `Direct` or `Prompted`."""

    @property
    def family(self) -> Family: ...
    @property
    def program(self) -> Program: ...
    @property
    def options(self) -> SearchOptions: ...
    @property
    def source_lang(self) -> str: ...
    @property
    def target_lang(self) -> str: ...
    def fits(self, text: str) -> bool: ...
    def request(self, sentence: str) -> Request: ...
    def segment(self, sentence: str, found: Hypothesis, ms: float) -> Segment: ...


def together(way: Way, sentences: Sequence[str], batch: int) -> list[list[Segment]]:
    """The segments of each sentence, which is taken whole where it fits, `batch` of them at a time.

    `ms` is a segment's share of its batch's time.
    """
    cut = [
        list(texts.spaced(texts.trimmed(texts.well_formed(sentence), way.fits), way.target_lang))
        for sentence in sentences
    ]
    unlike = {piece.text for some in cut for piece, _ in some if texts.is_for(piece, way.source_lang)}
    order = sorted(unlike, key=lambda text: (-way.family.tokens(text), text))
    done: dict[str, Segment] = {}
    for start in range(0, len(order), batch):
        rows, started = order[start : start + batch], time.perf_counter()
        found = way.family.generate(way.program, [way.request(text) for text in rows], way.options)
        ms = (time.perf_counter() - started) * 1000 / len(rows)
        done |= {text: way.segment(text, one, ms) for text, one in zip(rows, found, strict=True)}
    direction = f"{way.source_lang}-{way.target_lang}"
    return [
        [done.get(piece.text) or Segment(piece.text, target, direction) for piece, target in some]
        for some in cut
    ]
