"""Translation by a model that takes prompts: each sentence with its terms, its context and its tags.

A sentence is streamed where greedy search or sampling writes it token by token: not under a constraint, not
with a beam, and not with tags, which are put in order when the answer is whole.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

from edgemt import answers
from edgemt import text as texts
from edgemt.constraints import Constraint
from edgemt.errors import UsageError
from edgemt.family import Family, Request
from edgemt.glossary import Glossary, Wanted
from edgemt.prompts import translation_in
from edgemt.runtimes.protocol import Program
from edgemt.search import Hypothesis, SearchOptions
from edgemt.segment import Segment
from edgemt.tags import Place, Tagged, moved
from edgemt.tagwords import found_again

Events = Generator[str | Segment]


class Context:
    """The sentences before one: those that were given, and the last `count` that were translated."""

    def __init__(self, given: Iterable[str] = (), count: int = 0) -> None:
        if count < 0:
            raise UsageError(f"a context of {count} sentences cannot be; give 0 or more")
        lines = (" ".join(sentence.split()) for sentence in given)
        self.given = tuple(line for line in lines if line)
        self.last: deque[str] = deque(maxlen=count)

    def sentences(self) -> tuple[str, ...]:
        return (*self.given, *self.last)


class Answer(NamedTuple):
    """A translation without tags, and where they belong."""

    found: Hypothesis
    target: str
    places: Mapping[int, Place]
    missing: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Prompted:
    """One call's translator."""

    family: Family
    program: Program
    options: SearchOptions
    source_lang: str
    target_lang: str
    glossary: Glossary | None
    context: Context

    def text(self, text: str, stream: bool = False) -> Events:
        """The segments of a text; with `stream`, before each the parts of its target as they come."""
        found = texts.pieces(text, self.source_lang, self.fits)
        for piece, target in texts.spaced(found, self.target_lang):
            if texts.is_for(piece, self.source_lang):
                yield from self._sentence(piece.text, stream)
            else:
                yield self._copied(piece.text, target)

    def document(self, text: str) -> Events:
        """The segments of HTML or XML."""
        from edgemt.markup import parts

        for part in parts(text, self.source_lang, self.target_lang, self.fits):
            tagged = part.sentence
            if tagged is None:
                yield self._copied(part.source, part.target)
            elif not texts.has_letters_of(tagged.plain, self.source_lang):
                yield self._copied(part.source, part.source)
            else:
                started = time.perf_counter()
                answer, failed = self._with_tags(tagged)
                yield dataclasses.replace(
                    self._segment(tagged.plain, answer, since(started)),
                    source=part.source,
                    target=tagged.write(answer.target, answer.places, part.escaped),
                    missing_tags=tuple(tagged.all[number].open for number in sorted(failed)),
                )

    def fits(self, text: str) -> bool:
        return self.family.tokens(text) <= self.family.limit

    def request(self, sentence: str) -> Request:
        """What the model is asked of a sentence without terms and tags."""
        return self._request(sentence, sentence)

    def segment(self, sentence: str, found: Hypothesis, ms: float) -> Segment:
        """What became of a sentence without terms and tags."""
        return self._segment(sentence, self._answer(found, sentence), ms)

    def _sentence(self, sentence: str, stream: bool) -> Events:
        started = time.perf_counter()
        wanted = self._wanted(sentence)
        if stream and wanted is None and self.options.beam == 1 and not self.options.scores:
            request = self.request(sentence)
            found = yield from self._streamed(request, sentence)
            answer = self._answer(found, sentence)
        else:
            answer = self._asked(sentence, wanted)
        yield self._segment(sentence, answer, since(started))

    def _streamed(self, request: Request, sentence: str) -> Generator[str, None, Hypothesis]:
        tokens: list[int] = []
        sent = 0
        with closing(self.family.stream(self.program, request, self.options)) as coming:
            for token in coming:
                tokens.append(token)
                sure = self._sure(tokens, sentence)
                if len(sure) > sent:
                    yield sure[sent:]
                    sent = len(sure)
        limit = self.family.longest(request, self.options)
        return Hypothesis(tuple(tokens), None, None, len(tokens) < limit)

    def _sure(self, tokens: Sequence[int], sentence: str) -> str:
        """What a translation that begins with `tokens` begins with."""
        kept = self.family.tokenizer.decode(tokens[: answers.unrepeated(tokens)])
        whole = kept.rstrip("\ufffd")  # the last character may lack bytes
        return texts.settled(answers.settled(whole, sentence), self.target_lang)

    def _with_tags(self, tagged: Tagged) -> tuple[Answer, Collection[int]]:
        """The best answer, and the tags that have no place in it.

        The second try is without the tags that were lost; they go around the words that were in them.
        """
        wanted = self._wanted(tagged.plain)
        if wanted and tagged.all:  # any of the terms may stand right behind a tag
            glued = dict.fromkeys(wanted.terms, True)
            known, stops = self.family.tokenizer, wanted.inner_stops
            wanted = Wanted(glued, self.target_lang, known, wanted.source, inner_stops=stops)
        every: set[int] = set(tagged.all)
        lost = every
        if self.fits(tagged.text()):
            answer = self._asked(tagged.plain, wanted, tagged)
            lost = every - set(answer.places)
            if lost:
                answer = self._asked(tagged.plain, wanted, tagged, lost)
                lost = every - set(answer.places)
        else:
            answer = self._asked(tagged.plain, wanted)
        places = found_again(tagged, answer.target, answer.places, lost, self._spoken)
        return answer._replace(places=places), every - set(places)

    def _spoken(self, words: str) -> Iterator[str]:
        """What words of a sentence may have become in its translation, the surest first."""
        if self.glossary:
            yield from (
                self.glossary[term] for _, term in self.glossary.find(words) if len(term) == len(words)
            )
        yield words
        if texts.has_letters_of(words, self.source_lang):
            request = Request(words, self.source_lang, self.target_lang)
            (found,) = self.family.generate(self.program, [request], self.options)
            yield self._answer(found, words).target

    def _wanted(self, sentence: str) -> Wanted | None:
        if self.glossary is None:
            return None
        return self.glossary.wanted(sentence, self.target_lang, self.family.tokenizer)

    def _asked(
        self,
        sentence: str,
        wanted: Wanted | None,
        tagged: Tagged | None = None,
        without: Collection[int] = (),
    ) -> Answer:
        """The answer to a sentence, with its tags but those of `without`.

        The prompt names the terms. Where the model does not do as it is told, it reads them in the sentence
        itself (code-switching), and where that is not enough, search is held to them.
        """
        if tagged and len(without) == len(tagged.all):
            tagged = None
        text = tagged.text(without) if tagged else sentence

        def once(text: str, constraint: Constraint | None = None) -> Answer:
            request = self._request(sentence, text, wanted, constraint, tagged is not None)
            (found,) = self.family.generate(self.program, [request], self.options)
            return self._answer(found, sentence, wanted, tagged, without, constraint is not None)

        answer = once(text)
        if wanted and answer.missing and tagged is None:
            answer = once(wanted.source)
        if wanted and answer.missing:
            answer = once(text, wanted.constraint())
        return answer

    def _request(
        self,
        sentence: str,
        text: str,
        wanted: Wanted | None = None,
        constraint: Constraint | None = None,
        markup: bool = False,
    ) -> Request:
        terms: dict[str, str] = {}
        if wanted and self.glossary:
            terms = {term: self.glossary[term] for _, term in self.glossary.find(sentence)}
        return Request(
            text,
            self.source_lang,
            self.target_lang,
            constraint,
            tuple(terms.items()),
            self.context.sentences(),
            markup,
        )

    def _answer(
        self,
        found: Hypothesis,
        sentence: str,
        wanted: Wanted | None = None,
        tagged: Tagged | None = None,
        without: Collection[int] = (),
        forced: bool = False,
    ) -> Answer:
        """The translation in the model's answer."""
        tokens = found.tokens if found.finished else answers.unlooped(found.tokens)
        said = translation_in(self.family.tokenizer.decode(tokens), markup=tagged is not None)
        clean = answers.clean(said, tagged.text(without) if tagged else sentence)
        answer = self._printed(found, clean, sentence, wanted, tagged, without)
        if forced and answer.missing:  # the terms stand in what looks like chatter
            whole = self._printed(found, " ".join(said.split()), sentence, wanted, tagged, without)
            answer = min(answer, whole, key=lambda answer: len(answer.missing))
        return answer

    def _printed(
        self,
        found: Hypothesis,
        said: str,
        sentence: str,
        wanted: Wanted | None,
        tagged: Tagged | None,
        without: Collection[int],
    ) -> Answer:
        """What the model said as the target language is printed, with the terms as they were given."""
        said, places = tagged.read(said, without) if tagged else (said, {})
        target = texts.end_as(sentence, texts.tidy(said, self.target_lang), self.target_lang)
        missing: tuple[str, ...] = ()
        if wanted:
            target, missing = wanted.check(target)
        return Answer(found, target, moved(places, said, target), missing)

    def _segment(self, sentence: str, answer: Answer, ms: float) -> Segment:
        self.context.last.append(sentence)
        return Segment(
            source=sentence,
            target=answer.target,
            direction=f"{self.source_lang}-{self.target_lang}",
            score=answer.found.score,
            translated=True,
            source_tokens=self.family.tokens(sentence),
            target_tokens=len(answer.found.tokens),
            ms=ms,
            missing=answer.missing,
            finished=answer.found.finished,
            doubt=answers.doubt(answer.target, self.target_lang),
        )

    def _copied(self, source: str, target: str) -> Segment:
        return Segment(source, target, f"{self.source_lang}-{self.target_lang}")


def since(started: float) -> float:
    """In ms."""
    return (time.perf_counter() - started) * 1000
