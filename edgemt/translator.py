"""Text in, text out: a bundle, its program and its tokenizer behind one object."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from edgemt import text as texts
from edgemt.bundle import Bundle, open_bundle
from edgemt.direct import Direct
from edgemt.errors import EdgemtError, UsageError
from edgemt.family import Family
from edgemt.manifest import Manifest
from edgemt.runtimes import open_program
from edgemt.search import SearchOptions
from edgemt.segment import Segment

if TYPE_CHECKING:
    from edgemt.generate import Sampling
    from edgemt.glossary import Glossary
    from edgemt.prompted import Context

# What only decoder-only models do.
PROMPTED = {
    "context": "context",
    "context_sentences": "context",
    "markup": "HTML or XML",
    "sampling": "sampling",
}
# A family's module has load(directory, manifest) -> Family.
FAMILIES = {"seq2seq": "edgemt.seq2seq", "causal": "edgemt.causal"}


class Asked(TypedDict, total=False):
    """How a text is to be translated; all of it may be left out."""

    source_lang: str | None
    target_lang: str | None
    glossary: Mapping[str, str] | None  # source terms, and the target terms that must appear
    beam: int | None  # hypotheses kept while searching; 1: greedy (default: the bundle's)
    scores: bool  # greedy search too says how sure it was (it is a little slower then)
    # Of decoder-only models:
    context: Sequence[str] | Context  # sentences of the source that come before the text
    context_sentences: int  # so many sentences before each one of the text are context too
    markup: bool  # the text is HTML or XML: its tags stay
    sampling: Sampling | None  # draw the answers (`Translator.sampling()` is the model's own way)


def load(path: str | Path | None = None, threads: int = 1, draft: str | Path | None = None) -> Translator:
    """Open the bundle at `path` (None: the default bundle) and make it ready to translate.

    `draft` (a smaller bundle with the same tokenizer, or "lookup") makes a decoder-only model faster, and
    changes nothing else.
    """
    return Translator(open_bundle(None if path is None else Path(path)), threads=threads, draft=draft)


class Translator:
    """A loaded bundle. One object serves any number of threads."""

    def __init__(self, bundle: Bundle, threads: int = 1, draft: str | Path | None = None) -> None:
        manifest = bundle.manifest
        self.family = open_family(bundle.directory, manifest)
        if draft is not None:
            from edgemt.drafts import attach_draft

            attach_draft(self.family, bundle, draft, threads)
        self.bundle = bundle
        self.languages = [(source, target) for source, target in manifest.languages]
        self.program = open_program(bundle.directory, manifest, threads=threads)
        self.tokenizer = self.family.tokenizer
        self.options = search_options(manifest)

    def translate(self, text: str, **asked: Unpack[Asked]) -> str:
        """The translation of a text of any length; line breaks, blank lines and indents stay.

        The direction is found from the text where a language is not given. Raises UsageError for a pair of
        languages that the bundle lacks, and where it is asked for what its family of models cannot do.
        """
        return "".join(segment.target for segment in self.segments(text, **asked))

    def segments(self, text: str, **asked: Unpack[Asked]) -> Iterator[Segment]:
        """The text in segments, each as soon as it is translated; their targets in a row are the translation.

        White space and line breaks are segments of their own; `translated` is false, and their tokens are 0.
        """
        if self.family.prompts:
            events = self._events(text, stream=False, **asked)
            yield from (event for event in events if isinstance(event, Segment))
            return
        for name, what in PROMPTED.items():
            if asked.get(name):
                raise UsageError(
                    f"{self.bundle.manifest.name} is not a decoder-only model, and cannot take {what}; "
                    "leave it out, or use another bundle"
                )
        text = texts.well_formed(text)
        pair = self.direction(text, asked.get("source_lang"), asked.get("target_lang"))
        glossary = as_glossary(asked.get("glossary"))
        yield from Direct(self.family, self.program, self._options(asked), *pair, glossary).text(text)

    def stream(self, text: str, **asked: Unpack[Asked]) -> Generator[str]:
        """The translation in parts, each as soon as nothing behind it can change it.

        A decoder-only model's sentence comes word by word, without a beam, scores, tags or a glossary term in
        it; else a part is a sentence. Closing the generator ends the work.
        """
        with closing(self.streamed(text, **asked)) as parts:
            yield from (part for part, _ in parts if part)

    def streamed(self, text: str, **asked: Unpack[Asked]) -> Generator[tuple[str, Segment | None]]:
        """As `stream`; with the last part of a segment, possibly empty, comes the segment."""
        if not self.family.prompts:
            yield from ((segment.target, segment) for segment in self.segments(text, **asked))
            return
        sent = 0
        with closing(self._events(text, stream=True, **asked)) as events:
            for event in events:
                if isinstance(event, str):
                    sent += len(event)
                    yield event, None
                else:
                    yield event.target[sent:], event
                    sent = 0

    def sampling(self, seed: int | None = None) -> Sampling:
        """The model's own way of sampling, by its checkpoint; where that says nothing, HY-MT's."""
        from edgemt.generate import Sampling

        return Sampling(**{**self.bundle.manifest.generation.get("sampling", {}), "seed": seed})

    def translate_many(
        self,
        sentences: Sequence[str],
        source_lang: str,
        target_lang: str,
        *,
        beam: int | None = None,
        batch: int = 16,
    ) -> list[str]:
        """The translations of many sentences, `batch` decoded at a time; see `segments_many`."""
        found = self.segments_many(sentences, source_lang, target_lang, beam=beam, batch=batch)
        return ["".join(segment.target for segment in segments) for segments in found]

    def segments_many(
        self,
        sentences: Sequence[str],
        source_lang: str,
        target_lang: str,
        *,
        beam: int | None = None,
        batch: int = 16,
    ) -> list[list[Segment]]:
        """The segments of each sentence, as `segments` gives them, but decoded `batch` at a time.

        A sentence is taken whole, and only cut where it is too long. Rounding may differ with the batch, and
        decide where two tokens are all but equally likely. `ms` is a segment's share of its batch's time.
        """
        from edgemt.batches import together

        if batch < 1:
            raise UsageError(f"a batch of {batch} cannot be; give 1 or more")
        pair = self.direction("", source_lang, target_lang)
        options = self._options({"beam": beam} if beam else {})
        if self.family.prompts:
            from edgemt.prompted import Context, Prompted

            way = Prompted(self.family, self.program, options, *pair, None, Context())
        else:
            way = Direct(self.family, self.program, options, *pair)
        return together(way, sentences, batch)

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

    def _options(self, asked: Asked) -> SearchOptions:
        if (beam := asked.get("beam") or 1) < 1:
            raise UsageError(f"a beam of {beam} cannot be; give 1 or more")
        return dataclasses.replace(
            self.options, beam=asked.get("beam") or self.options.beam, scores=asked.get("scores", False)
        )

    def _events(self, text: str, stream: bool, **asked: Unpack[Asked]) -> Generator[str | Segment]:
        from edgemt.prompted import Context, Prompted

        markup, context, sampling = asked.get("markup"), asked.get("context", ()), asked.get("sampling")
        options = dataclasses.replace(self._options(asked), sampling=sampling)
        if sampling and (options.beam > 1 or options.scores):
            raise UsageError("sampling has neither a beam nor scores; leave out one of them")
        if isinstance(context, str):
            raise UsageError("the context is one text; give a list of sentences")
        text = shown = texts.well_formed(text)
        if markup:
            from edgemt.markup import words

            shown = words(text)
        source_lang, target_lang = self.direction(shown, asked.get("source_lang"), asked.get("target_lang"))
        prompted = Prompted(
            self.family,
            self.program,
            options,
            source_lang,
            target_lang,
            as_glossary(asked.get("glossary")),
            context if isinstance(context, Context) else Context(context, asked.get("context_sentences", 0)),
        )
        yield from prompted.document(text) if markup else prompted.text(text, stream)


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
    known = {field.name for field in dataclasses.fields(SearchOptions)} - {"sampling"}  # on request only
    return SearchOptions(**{key: value for key, value in manifest.generation.items() if key in known})


def primary(language: str | None) -> str | None:
    """The language without script or region: "zh" for "zh-Hans" and "ZH_cn"."""
    return None if language is None else language.replace("_", "-").split("-")[0].lower()


def as_glossary(terms: Mapping[str, str] | None) -> Glossary | None:
    if not terms:
        return None
    from edgemt.glossary import Glossary

    return terms if isinstance(terms, Glossary) else Glossary(terms)
