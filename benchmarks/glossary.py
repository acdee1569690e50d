"""What glossary terms do: quality, presence and time, one means of the search after the other.

    python benchmarks/glossary.py BUNDLE [--every 1] [--out FILE.tsv]

The dev rows of the open clinical corpus that are one sentence, and in whose source a term of the corpus's
list occurs that its reference translates as the list does. Exactly those terms are the glossary of the row:
a user who knows the right word gives it. One thread; time is CPU time of one sentence after the other,
against greedy search without terms in the same run.

    off          no glossary, greedy
    beam         no glossary, a beam as wide as the narrowest under constraints
    terms        the terms must appear
    + switch     the model reads the target term in the place of the source term
    + stops      sentences do not end before the terms
    + place      a term is preferred where the model looks at its source
    + replace    and the model's own word for it avoided (as shipped)

The second table is of variants: terms that the model without a glossary writes as the list does are asked for
as another variant of the list. beside: rows in which the model's own word stands too; chrF: against the
output without a glossary, in which the variant replaces the model's word. It says whether a term that the
model would not choose takes the place of the one it would.

extra: rows that have a term more often than both source and reference; ends: rows with more sentence ends
before the last than the source; stray: rows whose last sentence is nothing but terms; unfinished: rows cut at
the length limit.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import sacrebleu

from edgemt import text as texts
from edgemt.constraints import TermConstraint
from edgemt.family import Request
from edgemt.glossary import INNER_STOP, Glossary, Wanted, within
from edgemt.search import CONSTRAINED_BEAM, SearchOptions
from edgemt.translator import Translator, load

DATA = Path(__file__).parents[1] / "examples/medical-zh-en/data"
DIRECTIONS = (("zh", "en"), ("en", "zh"))


class Row(NamedTuple):
    source: str
    reference: str
    terms: dict[str, str]


class Way(NamedTuple):
    name: str
    terms: bool
    switch: bool
    stops: bool
    options: dict[str, Any]


NO_GUIDE = {"place": 0.0, "replace": 0.0}
WAYS = [
    Way("off", False, False, False, {}),
    Way("beam", False, False, False, {"beam": CONSTRAINED_BEAM}),
    Way("terms", True, False, False, NO_GUIDE),
    Way("+ switch", True, True, False, NO_GUIDE),
    Way("+ stops", True, True, True, NO_GUIDE),
    Way("+ place", True, True, True, {"replace": 0.0}),
    Way("+ replace", True, True, True, {}),
]


def table(name: str) -> list[list[str]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n").split("\t") for line in file]


def rows_of(source_lang: str, target_lang: str) -> Iterator[Row]:
    side = 0 if source_lang == "zh" else 1
    glossary = Glossary({term[side]: term[1 - side] for term in reversed(table("terms.tsv.gz"))})
    for line in table("clinical.tsv.gz"):
        source, reference = line[3 + side], line[4 - side]
        if line[5] != "dev" or len(texts.sentences(source, source_lang)) != 1:
            continue
        terms = {term: glossary[term] for _, term in glossary.find(source)}
        if terms := {term: to for term, to in terms.items() if within(to, reference)}:
            yield Row(source, reference, terms)


def count(term: str, text: str) -> int:
    return len(re.findall(re.escape(term), text, re.IGNORECASE))


def alone(row: Row, output: str) -> bool:
    """Whether the last sentence, after another, is nothing but terms."""
    last = INNER_STOP.split(output)[-1]
    rest = re.sub("|".join(map(re.escape, row.terms.values())), "", last, flags=re.IGNORECASE)
    return last != output and not texts.has_letters(rest)


def translate(translator: Translator, row: Row, pair: tuple[str, str], way: Way) -> tuple[str, bool]:
    """The translation, and whether it came to its end."""
    tokenizer = translator.tokenizer
    wanted: Wanted | None = None
    constraint = None
    if way.terms:
        wanted = Glossary(row.terms).wanted(row.source, pair[1], tokenizer)
        assert wanted
        constraint = wanted.constraint()
        if not way.stops:
            constraint = TermConstraint(list(wanted.terms.values()), tokenizer.inner, words=tokenizer.words)
    options = dataclasses.replace(translator.options, **way.options)
    source = wanted.source if wanted and way.switch else row.source
    (found,) = translator.family.generate(translator.program, [Request(source, *pair, constraint)], options)
    target = texts.tidy(tokenizer.decode(found.tokens), pair[1])
    return (wanted.check(target)[0] if wanted else target), found.finished


def variants(target_lang: str) -> dict[str, str]:
    """Term -> a variant that is another word (they begin differently, and neither holds the other)."""
    found: dict[str, str] = {}
    for term in table("terms.tsv.gz"):
        main = term[0] if target_lang == "zh" else term[1]
        for part in (term[3] if len(term) > 3 else "").split("; "):
            language, _, other = part.partition(":")
            a, b = main.lower(), other.lower()
            if language == target_lang and a not in b and b not in a and a[:4] != b[:4]:
                found.setdefault(main, other)
    return found


def show_variants(translator: Translator, pair: tuple[str, str], ways: list[Way]) -> None:
    known = variants(pair[1])
    chosen: list[tuple[Row, dict[str, str], str]] = []  # row, its variants' main terms, the output hoped for
    for row in rows_of(*pair):
        hoped, _ = translate(translator, row, pair, WAYS[0])
        mains = {term: to for term, to in row.terms.items() if to in known and within(to, hoped)}
        for main in mains.values():
            hoped = re.sub(re.escape(main), known[main], hoped, flags=re.IGNORECASE)
        if mains:
            row = Row(row.source, row.reference, {term: known[main] for term, main in mains.items()})
            chosen.append((row, mains, hoped))
    print(f"\n{'-'.join(pair)}, variants: {len(chosen)} rows\n                beside   chrF")
    for way in ways:
        if way.terms:
            outputs = [translate(translator, row, pair, way)[0] for row, _, _ in chosen]
            beside = sum(
                any(count(main, output) for main in mains.values())
                for (_, mains, _), output in zip(chosen, outputs, strict=True)
            )
            chrf = sacrebleu.corpus_chrf(outputs, [[hoped for _, _, hoped in chosen]])
            print(f"{way.name:14} {beside:7} {chrf.score:6.2f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Quality and time of translations with glossary terms.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth row")
    parser.add_argument("--out", type=Path, help="write all outputs here")
    parser.add_argument(
        "--try", dest="tries", nargs="+", default=[], metavar="OPTION=X,…", help="more rows: search options"
    )
    args = parser.parse_args()
    translator = load(args.bundle)
    ways = list(WAYS)
    for setting in args.tries:
        pairs = dict(part.split("=") for part in setting.split(","))
        types = {field.name: type(field.default) for field in dataclasses.fields(SearchOptions)}
        options = {name: types[name](value) for name, value in pairs.items()}
        ways.append(Way(setting, True, True, True, options))
    written: list[str] = []
    for pair in DIRECTIONS:
        rows = list(rows_of(*pair))[:: args.every]
        greedy: list[float] = []
        print(f"\n{'-'.join(pair)}: {len(rows)} rows, {sum(len(row.terms) for row in rows)} terms")
        print("                 BLEU   chrF  present  extra   ends  stray  unfinished   ms  p90 ms  × greedy")
        for way in ways:
            outputs, times, unfinished = [], [], 0
            for row in rows:
                start = time.process_time()
                output, finished = translate(translator, row, pair, way)
                times.append(time.process_time() - start)
                outputs.append(output)
                unfinished += not finished
            greedy = greedy or times
            references = [[row.reference for row in rows]]
            bleu = sacrebleu.corpus_bleu(outputs, references, tokenize="zh" if pair[1] == "zh" else "13a")
            chrf = sacrebleu.corpus_chrf(outputs, references)
            both = list(zip(rows, outputs, strict=True))
            present = [within(to, output) for row, output in both for to in row.terms.values()]
            extra = sum(
                any(
                    count(to, output) > max(count(term, row.source), count(to, row.reference))
                    for term, to in row.terms.items()
                )
                for row, output in both
            )
            ends = sum(
                len(INNER_STOP.findall(output)) > len(INNER_STOP.findall(row.source)) for row, output in both
            )
            stray = sum(alone(row, output) for row, output in both)
            ratio = statistics.median(t / g for t, g in zip(times, greedy, strict=True))
            share = 100 * sum(present) / len(present)
            print(
                f"{way.name:14} {bleu.score:6.2f} {chrf.score:6.2f} {share:7.1f}% "
                f"{extra:6} {ends:6} {stray:6} {unfinished:11} {1000 * statistics.median(times):4.0f} "
                f"{1000 * statistics.quantiles(times, n=10)[-1]:7.0f} {ratio:9.2f}",
                flush=True,
            )
            written += [
                "\t".join(["-".join(pair), way.name, row.source, str(row.terms), row.reference, output])
                + "\n"
                for row, output in both
            ]
        show_variants(translator, pair, ways)
    if args.out:
        args.out.write_text("".join(written), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
