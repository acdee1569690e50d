"""Pairs to instructions: what a causal model is asked about each pair, and what it is to answer.

A pair allows a thing (terms, context, tags) where its counterpart is certain: a term that stands on both
sides, lines of the same document before it, a span that can only be that one on the other side. Whether an
example gets what it allows is drawn once, by (seed, row, direction).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgemt.errors import UsageError
from edgemt.glossary import is_word, lower
from edgemt.prompts import answer_of, prompt
from edgemt.training.config import Prompts
from edgemt.training.data import Pairs

NUMBER = re.compile(r"(?<![0-9A-Za-z.,:/-])\d+(?:[.,:/-]\d+)*(?![0-9A-Za-z%])")
MOST_TAGS = 3
Span = tuple[int, int]
Sides = tuple[str, str]


class Instruction(NamedTuple):
    row: int
    source: int
    """The side of the pair that is translated: 0 or 1."""
    prompt: str
    answer: str


class Terms:
    """Pairs of terms, found in pairs of sentences."""

    def __init__(self, terms: Sequence[Sides]) -> None:
        self.by_start: dict[str, list[tuple[Sides, Sides]]] = {}  # each as it is, and in lower case
        for pair in sorted(dict.fromkeys(terms), key=lambda pair: -len(pair[0])):
            low = lower(pair[0]), lower(pair[1])
            self.by_start.setdefault(low[0][0], []).append((pair, low))

    def find(self, texts: Sides) -> Iterator[tuple[Sides, Span, Span | None]]:
        """Each term pair on both sides, the longest first at each place, none inside another.

        With where it stands on the first side, and on the second (None if it is there several times).
        """
        first, second = lower(texts[0]), lower(texts[1])
        position, seen = 0, set()
        while position < len(first):
            for pair, low in self.by_start.get(first[position], ()):
                end = position + len(low[0])
                if not first.startswith(low[0], position) or not is_word(first, position, end):
                    continue
                places = occurrences(low[1], second)
                if places and pair not in seen:
                    seen.add(pair)
                    once = len(places) == 1 and len(occurrences(low[0], first)) == 1
                    yield pair, (position, end), places[0] if once else None
                if places:
                    position = end - 1
                    break
            position += 1


def occurrences(term: str, text: str) -> list[Span]:
    """Where `term` stands in `text` as a word."""
    found, start = [], text.find(term)
    while start >= 0:
        if is_word(text, start, start + len(term)):
            found.append((start, start + len(term)))
        start = text.find(term, start + 1)
    return found


def read_terms(path: Path, languages: Sides) -> Terms | None:
    """`terms.tsv`: a header of the two language codes, then a term pair a line. None if it is not there."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or tuple(rows[0]) != languages:
        raise UsageError(f"{path}, line 1: write {languages[0]}, tab, {languages[1]}, as in train.tsv")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != 2 or not all(cell.strip() for cell in row):
            raise UsageError(f"{path}, line {number}: write two terms with a tab between them")
    return Terms([(a.strip(), b.strip()) for a, b in rows[1:]])


def instructions(
    pairs: Pairs, rows: Sequence[int], sides: Sequence[int], terms: Terms | None, mix: Prompts, seed: int
) -> Iterator[Instruction]:
    """Of each of the `rows` of `pairs`, the instruction to translate each of its `sides` into the other."""
    before = preceding(pairs.document)
    for row in rows:
        texts = pairs.texts[0][row].strip(), pairs.texts[1][row].strip()
        found = list(terms.find(texts)) if terms else []
        for side in sides:
            random = np.random.default_rng([seed, row, side])
            wants_terms, wants_context, wants_tags = random.random(3) < (
                mix.terminology,
                mix.context,
                mix.formatted,
            )
            lines = before[row][-int(random.integers(1, mix.context_lines + 1)) :]
            tagged = tag(texts, found, random) if wants_tags and "<" not in texts[0] + texts[1] else None
            source, target = (tagged or texts)[side], (tagged or texts)[1 - side]
            asked = prompt(
                source,
                pairs.languages[side],
                pairs.languages[1 - side],
                terms=[(pair[side], pair[1 - side]) for pair, *_ in found] if wants_terms else (),
                context=[pairs.texts[side][line].strip() for line in lines] if wants_context else (),
                markup=tagged is not None,
            )
            yield Instruction(row, side, asked, answer_of(target, tagged is not None))


def preceding(document: Sequence[str]) -> list[list[int]]:
    """Of each row, the rows of its document that come before it."""
    rows: dict[str, list[int]] = {}
    before = []
    for row, name in enumerate(document):
        before.append(list(rows.get(name, ())) if name else [])
        rows.setdefault(name, []).append(row)
    return before


def tag(texts: Sides, found: Sequence[tuple[Sides, Span, Span | None]], random: np.random.Generator) -> Sides:
    """Both sides with `<s1>…</s1>`, `<s2>` … around spans that are each other's translation.

    Those are terms and numbers that stand once on each side; else the whole sentence.
    """
    spans = [(span, there) for _, span, there in found if there is not None]
    for match in NUMBER.finditer(texts[0]):
        places = [[m.span() for m in NUMBER.finditer(text) if m[0] == match[0]] for text in texts]
        if len(places[0]) == len(places[1]) == 1:
            spans.append((places[0][0], places[1][0]))
    chosen: list[tuple[Span, Span]] = []
    for i in random.permutation(len(spans))[: int(random.integers(1, MOST_TAGS + 1))]:
        if all(apart(spans[i][k], other[k]) for other in chosen for k in (0, 1)):
            chosen.append(spans[i])
    chosen = sorted(chosen) or [((0, len(texts[0])), (0, len(texts[1])))]
    return wrap(texts[0], [pair[0] for pair in chosen]), wrap(texts[1], [pair[1] for pair in chosen])


def apart(one: Span, other: Span) -> bool:
    return one[1] <= other[0] or other[1] <= one[0]


def wrap(text: str, spans: Sequence[Span]) -> str:
    """`text` with `<sN>…</sN>` around the N-th span, none of which overlap."""
    for number, (start, end) in sorted(enumerate(spans, 1), key=lambda item: item[1], reverse=True):
        text = f"{text[:start]}<s{number}>{text[start:end]}</s{number}>{text[end:]}"
    return text
