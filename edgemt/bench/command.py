"""`edgemt bench`: measure latency against a budget. See docs/bench.md."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemt.bench.output import check_extra, check_writable, write
from edgemt.errors import EdgemtError, UsageError

if TYPE_CHECKING:
    from edgemt.bench.cold import Start, Text
    from edgemt.bench.results import Contender, Settings
    from edgemt.bench.workload import Sentence, Workload
    from edgemt.bundle import Bundle

COLD_RUNS = 3  # fresh processes for each bundle


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    several = "bundle to measure; several are measured side by side (default: the one that edgemt has)"
    add("-b", "--bundle", action="append", type=Path, metavar="BUNDLE", help=several)
    add("--budget-ms", default="500", metavar="MS", help="milliseconds a text may take (default: 500)")
    share = "per cent of the texts of each bucket that must be within the budget (default: 99)"
    add("--percentile", default="99", metavar="P", help=share)
    add("--workload", type=Path, metavar="FILE", help="texts, one a line, or a TSV (default: medical)")
    add("--rounds", default="5", metavar="N", help="times each text is measured (default: 5)")
    add("--warmup", default="1", metavar="N", help="rounds before those that count (default: 1)")
    add("--threads", default="1", metavar="N", help="threads of the runtime (default: 1)")
    add("--beam", default=None, metavar="N", help="beam width (default: the bundle's own)")
    add("--json", type=Path, metavar="FILE", help="write everything, with each single time, as JSON")
    add("--report", type=Path, metavar="FILE.html", help="write a page with plots")
    parser.epilog = "Exit code: 0 within the budget, 1 over it, 2 if nothing could be measured."


def run(args: argparse.Namespace) -> int:
    """Exit code 1 says "over the budget" and nothing else: whatever else goes wrong is 2."""
    try:
        return _run(args)
    except EdgemtError as error:
        raise UsageError(str(error)) from None


def _run(args: argparse.Namespace) -> int:
    from edgemt.bench.facts import emulator, machine_facts
    from edgemt.bench.results import Settings, build
    from edgemt.bench.table import render
    from edgemt.bench.workload import read_workload

    settings = Settings(
        budget_ms=_number(args.budget_ms, "--budget-ms", above=0),
        percentile=_number(args.percentile, "--percentile", above=0, most=100),
        rounds=_count(args.rounds, "--rounds", 1),
        warmup=_count(args.warmup, "--warmup", 0),
        threads=_count(args.threads, "--threads", 1),
        beam=None if args.beam is None else _count(args.beam, "--beam", 1),
    )
    workload = read_workload(args.workload)
    for path, option in ((args.json, "--json"), (args.report, "--report")):
        check_writable(path, option)
    if args.report:
        check_extra()
    if name := emulator():
        raise UsageError(
            f"this process runs under {name}, whose times are not the device's; measure on the device"
        )

    from edgemt.bundle import open_bundle

    bundles = [open_bundle(path) for path in args.bundle or [None]]
    workload, skipped = _speakable(workload, bundles)
    contenders, samples = _measure(bundles, workload, settings)
    data = build(settings, workload, contenders, samples, machine_facts(settings.threads), skipped)
    print(render(data))
    if args.json:
        write(args.json, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    if args.report:
        from edgemt.bench.page import page

        write(args.report, page(data))
    return 0 if data["verdict"]["within_budget"] else 1


def _measure(bundles: list[Bundle], workload: Workload, settings: Settings) -> tuple[list[Contender], Any]:
    import edgemt
    from edgemt.bench.cold import cold_start
    from edgemt.bench.measure import count_tokens, measure
    from edgemt.bench.results import Contender

    texts: list[Text] = [(s.source, s.source_lang, s.target_lang) for s in workload.sentences]
    starts: list[list[Start]] = [[] for _ in bundles]
    for attempt in range(COLD_RUNS):
        for place, bundle in enumerate(bundles):
            _progress("starting fresh processes", (attempt + place / len(bundles)) / COLD_RUNS)
            # The first process goes through the whole workload, which shows the bundle's peak memory.
            chosen = texts if attempt == 0 else texts[:1]
            starts[place].append(cold_start(bundle, settings.threads, settings.beam, chosen))
    translators = [edgemt.load(bundle.path, threads=settings.threads) for bundle in bundles]
    counts = []
    for place, translator in enumerate(translators):
        _progress("counting tokens", place / len(translators))
        counts.append(count_tokens(translator, workload.sentences, settings.beam))
    samples = measure(
        translators,
        workload.sentences,
        rounds=settings.rounds,
        warmup=settings.warmup,
        beam=settings.beam,
        progress=_progress,
    )
    _progress("", 1)
    return [
        Contender(*parts) for parts in zip(_labels(bundles), bundles, starts, counts, strict=True)
    ], samples


def _labels(bundles: list[Bundle]) -> list[str]:
    """Name and precision; the path too where that is not enough to tell them apart."""
    plain = [f"{b.manifest.name} {b.manifest.precision}" for b in bundles]
    labels = [
        f"{p} ({b.path.name})" if Counter(plain)[p] > 1 else p for p, b in zip(plain, bundles, strict=True)
    ]
    return [f"{label} #{n}" if Counter(labels)[label] > 1 else label for n, label in enumerate(labels, 1)]


def _speakable(workload: Workload, bundles: list[Bundle]) -> tuple[Workload, int]:
    """The texts whose languages every bundle has, both languages filled in, and how many were left out."""
    from edgemt.text import language_of

    shared = [
        pair for pair in bundles[0].manifest.languages if all(pair in b.manifest.languages for b in bundles)
    ]

    def fill(sentence: Sentence) -> Sentence:
        source = sentence.source_lang or language_of(sentence.source)
        likely = [
            pair for pair in shared if source in (pair[0], None) and sentence.target_lang in (pair[1], None)
        ]
        pair = likely[0] if likely else [source, sentence.target_lang]
        return dataclasses.replace(sentence, source_lang=pair[0], target_lang=pair[1])

    filled = [fill(sentence) for sentence in workload.sentences]
    kept = [sentence for sentence in filled if [sentence.source_lang, sentence.target_lang] in shared]
    if not kept:
        pairs = ", ".join("→".join(pair) for pair in shared) or "no common pair"
        raise UsageError(
            f"none of the {len(filled)} texts of the workload {workload.name} is in a language pair "
            f"of every bundle ({pairs}); give texts in these languages with --workload"
        )
    return dataclasses.replace(workload, sentences=kept), len(filled) - len(kept)


def _number(text: str, option: str, above: float, most: float = math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (above < value <= most and math.isfinite(value)):
        limit = f"above {above:g}" + (f" and at most {most:g}" if most < math.inf else "")
        raise UsageError(f"{option} is {text!r}; give a number {limit}")
    return value


def _count(text: str, option: str, least: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) <= 1_000_000):
        raise UsageError(f"{option} is {text!r}; give a whole number, at least {least}")
    return int(text)


def _progress(what: str, share: float) -> None:
    """One line on stderr that overwrites itself, only where somebody looks at it."""
    if sys.stderr.isatty():
        line = f"{what} {share:4.0%}" if what else ""
        print(f"\r{line:<40}", end="" if what else "\r", file=sys.stderr, flush=True)
