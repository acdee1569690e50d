"""What benchmarks/causal_quality.py asks of each bundle: test rows, whole, with terms, with tags."""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from edgemt.errors import UsageError
from edgemt.glossary import Glossary, within

DATA = Path(__file__).parents[1] / "examples" / "medical-zh-en" / "data"
GLOSSARY_WAYS = ("without", "prompt", "glossary")
SENTENCES = 40
NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
CLAUSE = re.compile(r"[^，,；;：:。.!?！？]{2,}(?=[，,；;：:])")
TAGGED = re.compile(r"<b>(.*?)</b>")


class Row(NamedTuple):
    corpus: str
    source_lang: str
    target_lang: str
    source: str
    target: str  # the reference
    terms: tuple[tuple[str, str], ...] = ()


class Job(NamedTuple):
    """What a line of the state file answers."""

    task: str
    way: str
    row: Row

    def key(self, digest: str) -> str:
        return json.dumps(
            [digest, self.task, self.way, self.row.source_lang, self.row.source], ensure_ascii=False
        )


def jobs_of(task: str, args: argparse.Namespace, way: str) -> list[Job]:
    """`way`: of the tasks plain ("user", "batch") and draft (which)."""
    if task == "sentences":
        rows = [row for row in both_ways(clinical(), "clinical") if row.source_lang == "zh"]
        return [Job(task, "", row) for row in spread(rows, SENTENCES)]
    rows = test_rows(args)
    if task in ("plain", "references"):
        return [Job(task, way, row) for row in rows]
    if task == "tags":
        return [Job(task, "", row._replace(source=tagged(row.source))) for row in rows]
    if task == "draft":
        return [Job(task, way, row) for row in spread(rows, args.prompts)]
    terms = [line.split("\t")[:2] for line in lines(DATA / "terms.tsv.gz")]
    glossaries = {
        "zh": Glossary({zh: en for zh, en in reversed(terms)}),
        "en": Glossary({en: zh for zh, en in reversed(terms)}),
    }
    found = []
    for row in rows:
        glossary = glossaries[row.source_lang]
        own = {term: glossary[term] for _, term in glossary.find(row.source)}
        if own := tuple((term, to) for term, to in own.items() if within(to, row.target)):
            found += [Job(task, way, row._replace(terms=own)) for way in GLOSSARY_WAYS]
    return found


def test_rows(args: argparse.Namespace) -> list[Row]:
    if args.data is None:
        return spread_ways(both_ways(clinical(), "clinical"), args.rows)
    table = [line.split("\t") for line in lines(args.data)]
    found = []
    for corpus in args.corpora.split(","):
        pairs = [(line[3], line[4]) for line in table if line[0] == "test" and line[1] == corpus]
        if not pairs:
            raise UsageError(f"{args.data} has no test rows of the corpus {corpus!r}; see --corpora")
        found += spread_ways(both_ways(pairs, corpus), args.rows)
    return found


def clinical() -> list[tuple[str, str]]:
    table = [line.split("\t") for line in lines(DATA / "clinical.tsv.gz")]
    return [(line[3], line[4]) for line in table if line[5] == "test"]


def both_ways(pairs: Sequence[tuple[str, str]], corpus: str) -> list[Row]:
    ours = [Row(corpus, "zh", "en", zh, en) for zh, en in pairs]
    return ours + [Row(corpus, "en", "zh", en, zh) for zh, en in pairs]


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    count = min(count, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def spread_ways(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` of each direction, the same pairs both ways."""
    half = len(rows) // 2
    return spread(rows[:half], count) + spread(rows[half:], count)


def lines(path: Path) -> Iterator[str]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as f
        ):
            yield from (line.rstrip("\n") for line in f)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); give a table as in --help") from None


def tagged(text: str) -> str:
    """With <b>…</b> around its first number, its first clause, or all of it but the end mark."""
    found = NUMBER.search(text) or CLAUSE.search(text) or re.match(r".*\w", text)
    start, end = found.span() if found else (0, len(text))
    return f"{text[:start]}<b>{text[start:end]}</b>{text[end:]}"
