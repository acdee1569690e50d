"""Translation by a model that takes a sentence and nothing beside it (encoder and decoder).

Models that take prompts: prompted.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from edgemt import text as texts
from edgemt.family import Family, Request
from edgemt.glossary import Glossary
from edgemt.runtimes.protocol import Program
from edgemt.search import Hypothesis, SearchOptions
from edgemt.segment import Segment


@dataclass
class Direct:
    """One call's translator."""

    family: Family
    program: Program
    options: SearchOptions
    source_lang: str
    target_lang: str
    glossary: Glossary | None = None

    def text(self, text: str) -> Iterator[Segment]:
        """The segments of a text."""
        direction = f"{self.source_lang}-{self.target_lang}"
        found = texts.pieces(text, self.source_lang, self.fits)
        for piece, target in texts.spaced(found, self.target_lang):
            if texts.is_for(piece, self.source_lang):
                yield self._sentence(piece.text)
            else:
                yield Segment(piece.text, target, direction)

    def fits(self, text: str) -> bool:
        return self.family.tokens(text) <= self.family.limit

    def request(self, sentence: str) -> Request:
        """What the model is asked, without terms."""
        return Request(sentence, self.source_lang, self.target_lang)

    def segment(self, sentence: str, found: Hypothesis, ms: float) -> Segment:
        """What became of a sentence without terms."""
        return self._segment(sentence, sentence, found, self._target(sentence, found), (), ms)

    def _sentence(self, sentence: str) -> Segment:
        started = time.perf_counter()
        wanted = None
        if self.glossary:
            wanted = self.glossary.wanted(sentence, self.target_lang, self.family.tokenizer)
        source = wanted.source if wanted else sentence
        constraint = wanted.constraint() if wanted else None
        request = Request(source, self.source_lang, self.target_lang, constraint)
        (found,) = self.family.generate(self.program, [request], self.options)
        target, missing = self._target(sentence, found), ()
        if wanted:
            target, missing = wanted.check(target)
        ms = (time.perf_counter() - started) * 1000
        return self._segment(sentence, source, found, target, missing, ms)

    def _target(self, sentence: str, found: Hypothesis) -> str:
        target = texts.tidy(self.family.tokenizer.decode(found.tokens), self.target_lang)
        return texts.end_as(sentence, target, self.target_lang)

    def _segment(
        self, sentence: str, source: str, found: Hypothesis, target: str, missing: tuple[str, ...], ms: float
    ) -> Segment:
        """`source`: the sentence as the model read it."""
        return Segment(
            source=sentence,
            target=target,
            direction=f"{self.source_lang}-{self.target_lang}",
            score=found.score,
            translated=True,
            source_tokens=self.family.tokens(source),
            target_tokens=len(found.tokens),
            ms=ms,
            missing=missing,
        )
