"""Write `edgemt/data/workload.tsv`, the fixed medical workload that `edgemt bench` measures.

    python benchmarks/make_workload.py

Takes dev rows of the open clinical corpus only, so that no model has been trained on them, and for each
direction and nominal length (source tokens) the sentences nearest to it. Where a length has too few natural
sentences, lines that follow each other in one scenario are joined by a semicolon: to the translator that is
one sentence. Tokens are those of the default bundle; without one they are estimated from characters, and the
script says so.

The column `terms` is the glossary of each text, for the mode of that name: the terms of the corpus's list
that occur in it and that its reference translates as the list does, as a user who knows the right word gives
them.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from edgemt.bench.workload import BUCKETS, COLUMNS, WORKLOAD
from edgemt.bundle import open_bundle
from edgemt.errors import UsageError
from edgemt.glossary import Glossary, within
from edgemt.tokenizer import Tokenizer

DATA = Path(__file__).parents[1] / "examples/medical-zh-en/data"
CORPUS, TERMS = DATA / "clinical.tsv.gz", DATA / "terms.tsv.gz"
DIRECTIONS = (("zh", "en"), ("en", "zh"))
PER_BUCKET = 12  # sentences for each bucket and direction
PER_SCENARIO = 2  # of one scenario in a bucket and direction, while others have some
TOLERANCE = 0.12  # of the nominal length; one token where that is less
CHARACTERS_PER_TOKEN = {"zh": 1.3, "en": 3.5}  # only without a tokenizer
JOINT = {"zh": ("。", "；"), "en": (".", "; ")}
SEVERAL = re.compile(r"[。？！].|[.?!] [A-Z]")  # more than one sentence: the translator would split it


class Line(NamedTuple):
    scenario: str
    number: int
    speaker: str
    needs_context: bool
    text: dict[str, str]  # language -> sentence


class Candidate(NamedTuple):
    source: str
    reference: str
    tokens: int
    scenario: str
    origin: str  # scenario:line, or scenario:first-last
    parts: int


Count = Callable[[str, str], int]  # (text, language) -> source tokens


def dev_lines(corpus: Path) -> list[Line]:
    with gzip.open(corpus, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    return [
        Line(scenario, int(number), register.rstrip("*"), register.endswith("*"), {"zh": zh, "en": en})
        for scenario, number, register, zh, en, split in rows
        if split == "dev"
    ]


def candidates(lines: list[Line], language: str, count: Count) -> Iterator[Candidate]:
    """Every line that stands alone, and every run of lines of one speaker that can be joined."""
    stop, joint = JOINT[language]
    other = "en" if language == "zh" else "zh"
    for start, first in enumerate(lines):
        if first.needs_context:
            continue
        text = first.text[language]
        if SEVERAL.search(text):
            continue
        reference = first.text[other]
        origin = f"{first.scenario}:{first.number}"
        yield Candidate(text, reference, count(text, language), first.scenario, origin, 1)
        for end in range(start + 1, len(lines)):
            last = lines[end]
            if (last.scenario, last.speaker) != (first.scenario, first.speaker) or not text.endswith(stop):
                break
            text = text.removesuffix(stop) + joint + last.text[language]
            reference += " " + last.text[other]
            if SEVERAL.search(text):
                break
            tokens = count(text, language)
            if tokens > max(BUCKETS) * (1 + TOLERANCE):
                break
            origin = f"{first.scenario}:{first.number}-{last.number}"
            yield Candidate(text, reference, tokens, first.scenario, origin, end - start + 1)


def choose(pool: list[Candidate], nominal: int) -> list[Candidate]:
    """The `PER_BUCKET` best: fewest joints first, then nearest in length, spread over scenarios."""
    near = [c for c in pool if abs(c.tokens - nominal) <= max(1, nominal * TOLERANCE)]
    near.sort(key=lambda c: (c.parts, abs(c.tokens - nominal), c.origin))
    chosen: list[Candidate] = []
    for limit in (PER_SCENARIO, PER_BUCKET):
        for candidate in near:
            same = [c for c in chosen if c.scenario == candidate.scenario]
            new = candidate not in chosen and not any(_overlap(candidate, c) for c in same)
            if len(chosen) < PER_BUCKET and len(same) < limit and new:
                chosen.append(candidate)
    return chosen


def _overlap(a: Candidate, b: Candidate) -> bool:
    """Whether two candidates of one scenario share a line."""
    (a0, *a1), (b0, *b1) = ([int(n) for n in re.findall(r"\d+", c.origin.split(":")[1])] for c in (a, b))
    return a0 <= (b1 or [b0])[0] and b0 <= (a1 or [a0])[0]


def glossaries() -> dict[str, Glossary]:
    """Source language -> the corpus's list of terms; the first of several translations counts."""
    with gzip.open(TERMS, "rt", encoding="utf-8") as file:
        terms = [line.rstrip("\n").split("\t")[:2] for line in file]
    return {
        "zh": Glossary({zh: en for zh, en in reversed(terms)}),
        "en": Glossary({en: zh for zh, en in reversed(terms)}),
    }


def terms_of(candidate: Candidate, glossary: Glossary) -> str:
    found = {term: glossary[term] for _, term in glossary.find(candidate.source)}
    return "; ".join(f"{term}={to}" for term, to in found.items() if within(to, candidate.reference))


def counter(bundle: Path | None) -> tuple[Count, str]:
    """How source tokens are counted, and the words that say so."""
    try:
        tokenizer = Tokenizer.of(open_bundle(bundle))
    except UsageError:
        if bundle:
            raise
        return (
            lambda text, language: max(1, round(len(text) / CHARACTERS_PER_TOKEN[language])),
            "characters (no default bundle)",
        )
    return lambda text, language: len(tokenizer.encode(text)), "the bundle's tokens"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=WORKLOAD)
    parser.add_argument(
        "-b", "--bundle", type=Path, help="whose tokens to count (default: the default bundle)"
    )
    args = parser.parse_args()
    lines = dev_lines(CORPUS)
    count, said = counter(args.bundle)
    pools = {pair: list(candidates(lines, pair[0], count)) for pair in DIRECTIONS}
    known = glossaries()
    rows = ["\t".join(COLUMNS)]
    for nominal in BUCKETS:
        for pair in DIRECTIONS:
            chosen = choose(pools[pair], nominal)
            joined = sum(c.parts > 1 for c in chosen)
            print(
                f"{nominal:3} {pair[0]}→{pair[1]} {len(chosen):2} sentences, {joined} joined", file=sys.stderr
            )
            rows += [
                "\t".join((str(nominal), *pair, c.source, terms_of(c, known[pair[0]]), c.origin))
                for c in chosen
            ]
    part = args.output.with_name(args.output.name + ".part")
    part.write_text("\n".join(rows) + "\n", encoding="utf-8")
    os.replace(part, args.output)
    print(f"{args.output}: {len(rows) - 1} sentences, lengths by {said}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
