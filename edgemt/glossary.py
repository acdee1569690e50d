"""Terms that a user wants translated in one way: read from files, found in a sentence, spelt in tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edgemt.constraints import Stops, TermConstraint
from edgemt.errors import UsageError
from edgemt.family import Tokenizer
from edgemt.text import LATIN, tidy

HEADERS = {("source", "target"), ("zh", "en"), ("en", "zh")}
OPENING = "([{（【「『“‘\"'-/"  # marks after which a word begins without a space
INNER_STOP = re.compile(r"[.!?。！？…]+(?=[^\w.!?。！？…]*[^\W\d_])")  # an end, or a dot, with words after it


class Glossary(dict[str, str]):
    """Source term -> target term, indexed by first letter. Latin letters match in either case."""

    def __init__(self, terms: Mapping[str, str]) -> None:
        super().__init__((source.strip(), target.strip()) for source, target in terms.items())
        for source, target in self.items():
            if not source or not target:
                raise UsageError(
                    f"the glossary entry {source!r} = {target!r} lacks a side; fill it or remove it"
                )
        self._starts: dict[str, list[tuple[str, str]]] = {}
        for source in sorted(self, key=len, reverse=True):
            self._starts.setdefault(lower(source)[0], []).append((lower(source), source))

    def find(self, sentence: str) -> list[tuple[int, str]]:
        """Position and source term of what occurs: the longest first at each place, none inside another."""
        text, found, position = lower(sentence), [], 0
        while position < len(text):
            for key, source in self._starts.get(text[position], ()):
                if text.startswith(key, position) and is_word(text, position, position + len(key)):
                    found.append((position, source))
                    position += len(key) - 1
                    break
            position += 1
        return found

    def wanted(self, sentence: str, target_lang: str, tokenizer: Tokenizer) -> Wanted | None:
        """What the translation of the sentence must contain; None if no term occurs in it."""
        glued: dict[str, bool] = {}  # target term -> whether its source term stands right after a mark
        found = self.find(sentence)
        for position, source in found:
            after_mark = position > 0 and sentence[position - 1] in OPENING
            glued[self[source]] = glued.get(self[source], False) or after_mark
        inner = {term for term in glued for other in glued if term != other and within(term, other)}
        terms = {term: mark for term, mark in glued.items() if term not in inner}
        if not terms:
            return None
        source, places = switched(sentence, self, found)
        offsets = tokenizer.offsets(source)
        spans = [
            [
                i
                for i, (a, b) in enumerate(offsets)
                if any(a < end and start < b for start, end in places[term])
            ]
            for term in terms
        ]
        return Wanted(terms, target_lang, tokenizer, source, spans, len(INNER_STOP.findall(sentence)))


class Wanted:
    """The target terms of one sentence: as a constraint for the search, and checked in what it found."""

    def __init__(
        self,
        terms: Mapping[str, bool],
        target_lang: str,
        tokenizer: Tokenizer,
        source: str = "",
        spans: Sequence[Sequence[int]] = (),
        inner_stops: int = 0,
    ) -> None:
        """`terms` maps each term to whether it may stand right after a mark, without a space.

        `source`: the sentence as the model is to read it; `spans`: the tokens in it of each term;
        `inner_stops`: sentence ends inside it.
        """
        self.source, self.spans, self.inner_stops = source, spans, inner_stops
        self.terms = {term: spellings(term, glued, target_lang, tokenizer) for term, glued in terms.items()}
        self.target_lang, self.tokenizer = target_lang, tokenizer

    def constraint(self) -> TermConstraint:
        """For the search. A term in Latin letters is no part of a longer word."""
        known = self.tokenizer
        points = frozenset(i for i in known.closing if known.pieces[i] == ".")
        stops = Stops(known.closing, points, known.digits, self.inner_stops)
        latin = any(LATIN.match(end) for term in self.terms for end in (term[0], term[-1]))
        inside, words = (known.inner, known.words) if latin else ((), ())
        return TermConstraint(list(self.terms.values()), inside, self.spans, stops, words)

    def check(self, text: str) -> tuple[str, tuple[str, ...]]:
        """The output with every term exactly as the user wrote it, and the terms that it lacks."""
        for term, sequences in self.terms.items():
            # The vocabulary may normalise a term (wide letters, spaces in Chinese): write it as it was given.
            for written in {tidy(self.tokenizer.decode(ids), self.target_lang) for ids in sequences}:
                if not within(term, text) and written:
                    text = text.replace(written, term, 1)
            text = uncapitalised(term, text)
        return text, tuple(term for term in self.terms if not within(term, text))


def switched(
    sentence: str, glossary: Mapping[str, str], found: Iterable[tuple[int, str]]
) -> tuple[str, dict[str, list[tuple[int, int]]]]:
    """The sentence with each term already in the target language, and where each target term stands in it.

    A model reads such a term as what it is, and copies it, where its own word for the source term may be
    another or wrong (code-switching, Song et al. 2019, https://aclanthology.org/N19-1044).
    """
    parts, places, done, length = [], {}, 0, 0
    for position, source in found:
        kept, target = sentence[done:position], glossary[source]
        parts += [kept, target]
        places.setdefault(target, []).append((length + len(kept), length + len(kept) + len(target)))
        length, done = length + len(kept) + len(target), position + len(source)
    return "".join([*parts, sentence[done:]]), places


def lower(text: str) -> str:
    """Lower case that keeps every character's position."""
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def is_word(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] does not begin or end inside a Latin word or number."""
    inside_left = start > 0 and LATIN.match(text[start - 1]) and LATIN.match(text[start])
    inside_right = end < len(text) and LATIN.match(text[end]) and LATIN.match(text[end - 1])
    return not (inside_left or inside_right)


def within(term: str, text: str) -> bool:
    """Whether the text contains the term as a word; the case of the term's first letter is free."""
    for form in cased(term):
        start = text.find(form)
        while start >= 0:
            if is_word(text, start, start + len(form)):
                return True
            start = text.find(form, start + 1)
    return False


def uncapitalised(term: str, text: str) -> str:
    """The text with the term as it was given where it stands capitalised inside a sentence."""
    for form in cased(term)[1:]:
        start = text.find(form)
        while start >= 0:
            before = text[:start].rstrip(" \"'“‘([")
            if before and before[-1] not in ".!?。！？:：" and is_word(text, start, start + len(form)):
                text = text[:start] + term + text[start + len(form) :]
            start = text.find(form, start + 1)
    return text


def cased(term: str) -> list[str]:
    """The term as given and, where that differs, with a capital first letter (it may begin the sentence)."""
    capital = term[0].upper() + term[1:]
    return [term] if capital == term else [term, capital]


def spellings(term: str, glued: bool, target_lang: str, tokenizer: Tokenizer) -> list[list[int]]:
    """The token sequences that spell a target term: with a space before it, without where that may be."""
    sequences: list[list[int]] = []
    for form in cased(term):
        sequences += tokenizer.spellings(form, glued, target_lang)
    if any(tokenizer.unknown in sequence for sequence in sequences):
        raise UsageError(
            f"this model cannot write the glossary term {term!r} (unknown letters); choose another"
        )
    return [sequence for i, sequence in enumerate(sequences) if sequence and sequence not in sequences[:i]]


def read_glossary(arguments: Iterable[str]) -> Glossary | None:
    """What --glossary gave: files and source=target pairs; later ones win. None if there were none."""
    terms: dict[str, str] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_file():
            terms |= read_file(path)
        elif "=" in argument:
            source, _, target = argument.partition("=")
            terms[source] = target
        else:
            raise UsageError(
                f"there is no glossary at {argument}; give a TSV, CSV or JSON file, or term=term"
            )
    return Glossary(terms) if terms else None


def read_file(path: Path) -> dict[str, str]:
    """A JSON object, or two columns with tabs or commas between them; a header row may name them."""
    import csv

    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"the glossary {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"the glossary {path} cannot be read ({error.strerror}); check the path") from None
    if path.suffix == ".json":
        return read_json(path, text)
    delimiter = "," if path.suffix == ".csv" or "\t" not in text else "\t"
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    terms: dict[str, str] = {}
    reader = csv.reader(text.splitlines(), delimiter=delimiter, quoting=quoting)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            header = reader.line_num == 1 and tuple(cell.lower() for cell in cells[:2]) in HEADERS
            if header or not any(cells) or cells[0].startswith("#"):
                continue
            if len(cells) < 2 or not cells[0] or not cells[1]:
                raise UsageError(
                    f"line {reader.line_num} of the glossary {path} lacks two columns; write term, tab, term"
                )
            terms[cells[0]] = cells[1]
    except csv.Error as error:
        where = f"line {reader.line_num} of the glossary {path}"
        raise UsageError(f"{where} is not CSV ({error}); correct it") from None
    return terms


def read_json(path: Path, text: str) -> dict[str, str]:
    try:
        terms = json.loads(text)
    except ValueError as error:
        raise UsageError(f"the glossary {path} is not JSON ({error}); correct it") from None
    if not isinstance(terms, dict) or not all(isinstance(target, str) for target in terms.values()):
        raise UsageError(f'the glossary {path} must be an object like {{"source": "target"}}; correct it')
    return terms
