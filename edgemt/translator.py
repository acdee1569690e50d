"""Text in, text out: a bundle, its program and its tokenizer behind one object."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgemt import text as texts
from edgemt.bundle import Bundle, open_bundle
from edgemt.errors import EdgemtError, UsageError
from edgemt.family import Family, Request
from edgemt.manifest import Manifest
from edgemt.runtimes import open_program
from edgemt.search import Hypothesis, SearchOptions

if TYPE_CHECKING:
    from edgemt.glossary import Glossary, Wanted

# A family's module has load(directory, manifest) -> Family.
FAMILIES = {"seq2seq": "edgemt.seq2seq", "causal": "edgemt.causal"}


@dataclass(frozen=True)
class Segment:
    """A part of the text and what became of it."""

    source: str
    target: str
    direction: str  # "zh-en"
    score: float | None = None  # log-probability per target token; None: copied, or greedy and not asked for
    translated: bool = False
    source_tokens: int = 0
    target_tokens: int = 0
    ms: float = 0.0
    missing: tuple[str, ...] = ()  # glossary terms that could not be placed


def load(path: str | Path | None = None, threads: int = 1) -> Translator:
    """Open the bundle at `path` (None: the default bundle) and make it ready to translate."""
    return Translator(open_bundle(None if path is None else Path(path)), threads=threads)


class Translator:
    """A loaded bundle. One object serves any number of threads."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        manifest = bundle.manifest
        self.family = open_family(bundle.directory, manifest)
        self.bundle = bundle
        self.languages = [(source, target) for source, target in manifest.languages]
        self.program = open_program(bundle.directory, manifest, threads=threads)
        self.tokenizer = self.family.tokenizer
        self.options = search_options(manifest)

    def translate(
        self,
        text: str,
        *,
        source_lang: str | None = None,
        target_lang: str | None = None,
        glossary: Mapping[str, str] | None = None,
        beam: int | None = None,
    ) -> str:
        """The translation of a text of any length; line breaks, blank lines and indents stay.

        The direction is found from the text where a language is not given. `glossary` maps source terms to
        the target terms that must appear. Raises UsageError for a pair of languages that the bundle lacks.
        """
        segments = self.segments(
            text, source_lang=source_lang, target_lang=target_lang, glossary=glossary, beam=beam
        )
        return "".join(segment.target for segment in segments)

    def segments(
        self,
        text: str,
        *,
        source_lang: str | None = None,
        target_lang: str | None = None,
        glossary: Mapping[str, str] | None = None,
        beam: int | None = None,
        scores: bool = False,
    ) -> Iterator[Segment]:
        """The text in segments, each as soon as it is translated; their targets in a row are the translation.

        White space and line breaks are segments of their own; `translated` is false, and their tokens are 0.
        With `scores`, greedy search too says how sure it was (it is a little slower then).
        """
        text = texts.well_formed(text)
        source_lang, target_lang = self.direction(text, source_lang, target_lang)
        direction = f"{source_lang}-{target_lang}"
        terms = as_glossary(glossary)
        options = dataclasses.replace(self.options, beam=beam or self.options.beam, scores=scores)
        for piece, target in spaced(texts.pieces(text, source_lang, self.fits), target_lang):
            if piece.translate and texts.has_letters_of(piece.text, source_lang):
                yield self._sentence(piece.text, source_lang, target_lang, terms, options)
            else:
                yield Segment(piece.text, target, direction)

    def translate_many(
        self,
        sentences: Sequence[str],
        source_lang: str,
        target_lang: str,
        *,
        beam: int = 1,
        batch: int = 16,
    ) -> list[str]:
        """One translation a sentence, each taken whole (cut at the model's limit), `batch` at a time."""
        source_lang, target_lang = self.direction("", source_lang, target_lang)
        requests = [Request(sentence, source_lang, target_lang) for sentence in sentences]
        lengths = [self.family.tokens(sentence) for sentence in sentences]
        order = sorted(range(len(requests)), key=lambda i: -lengths[i])  # rows of like length together
        options, most = dataclasses.replace(self.options, beam=beam), self.bundle.manifest.model.max_positions
        done = [""] * len(requests)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            found = self.family.generate(self.program, [requests[i] for i in rows], options, most)
            for i, hypothesis in zip(rows, found, strict=True):
                done[i] = texts.tidy(self.tokenizer.decode(hypothesis.tokens), target_lang)
        return done

    def direction(self, text: str, source_lang: str | None, target_lang: str | None) -> tuple[str, str]:
        """The languages to translate between: as asked and, where that is open, by the text's script."""
        source, target = primary(source_lang), primary(target_lang)
        pairs = [p for p in self.languages if source in (None, p[0]) and target in (None, p[1])]
        if not pairs:
            asked = (
                " to ".join(filter(None, [source or "any language", target])) if target else f"from {source}"
            )
            raise UsageError(f"this bundle does not translate {asked}; it has {self._pairs()}")
        if len(pairs) == 1:
            return pairs[0]
        language = texts.language_of(text)
        fitting = [p for p in pairs if language is None or (p[0] == "zh") == (language == "zh")]
        if len(fitting) == 1 or (fitting and language is None):
            return fitting[0]
        raise UsageError(f"the direction is not clear from the text; give --from and --to ({self._pairs()})")

    def _pairs(self) -> str:
        return ", ".join(f"{source} to {target}" for source, target in self.languages)

    def fits(self, text: str) -> bool:
        """Whether the text is short enough to be translated in one go."""
        return self.family.tokens(text) <= self.family.limit

    def _sentence(
        self,
        sentence: str,
        source_lang: str,
        target_lang: str,
        glossary: Glossary | None,
        options: SearchOptions,
    ) -> Segment:
        started = time.perf_counter()
        direction = f"{source_lang}-{target_lang}"
        wanted = glossary.wanted(sentence, target_lang, self.tokenizer) if glossary else None
        source = wanted.source if wanted else sentence

        def answer(wanted: Wanted | None) -> tuple[Hypothesis, str, tuple[str, ...]]:
            request = Request(source, source_lang, target_lang, wanted.constraint() if wanted else None)
            (found,) = self.family.generate(self.program, [request], options)
            target = texts.tidy(self.tokenizer.decode(found.tokens), target_lang)
            target = texts.end_as(sentence, target, target_lang)
            text, lacking = wanted.check(target) if wanted else (target, ())
            return found, text, lacking

        found, target, missing = answer(wanted)
        if wanted and missing:  # a term without a space before it may have become the end of another word
            found, target, missing = answer(wanted.apart())
        return Segment(
            source=sentence,
            target=target,
            direction=direction,
            score=found.score,
            translated=True,
            source_tokens=self.family.tokens(source),
            target_tokens=len(found.tokens),
            ms=(time.perf_counter() - started) * 1000,
            missing=missing,
        )


def open_family(directory: Path, manifest: Manifest) -> Family:
    """The family of a bundle's model. Raises EdgemtError for one that this edgemt does not run."""
    if manifest.family not in FAMILIES:
        raise EdgemtError(
            f"{manifest.name} is a model of the family {manifest.family}, and this edgemt runs "
            f"{', '.join(FAMILIES)}; upgrade edgemt"
        )
    return importlib.import_module(FAMILIES[manifest.family]).load(directory, manifest)


def search_options(manifest: Manifest) -> SearchOptions:
    """How the bundle wants to be searched."""
    known = {field.name for field in dataclasses.fields(SearchOptions)}
    return SearchOptions(**{key: value for key, value in manifest.generation.items() if key in known})


def spaced(pieces: Iterable[texts.Piece], target_lang: str) -> Iterator[tuple[texts.Piece, str]]:
    """Each piece with what it is copied as: one space between two sentences, and none in Chinese."""
    before, held = texts.Piece(""), None
    for piece in pieces:
        if held:
            yield held, "" if piece.translate else held.text
            held = None
        elif piece.translate and before.text.strip() and target_lang != "zh":
            yield texts.Piece(""), " "
        if piece.text == " " and before.translate and target_lang == "zh":
            held = piece
        else:
            yield piece, piece.text
        before = piece
    if held:
        yield held, held.text


def primary(language: str | None) -> str | None:
    """The language without script or region: "zh" for "zh-Hans" and "ZH_cn"."""
    return None if language is None else language.replace("_", "-").split("-")[0].lower()


def as_glossary(terms: Mapping[str, str] | None) -> Glossary | None:
    if not terms:
        return None
    from edgemt.glossary import Glossary

    return terms if isinstance(terms, Glossary) else Glossary(terms)
