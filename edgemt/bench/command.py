"""`edgemt bench`: measure latency against a budget. See docs/bench.md."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edgemt.bench import derived, options
from edgemt.errors import EdgemtError, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    several = "bundle to measure; several are measured side by side (default: the one that edgemt has)"
    add("-b", "--bundle", action="append", type=Path, metavar="BUNDLE", help=several)
    add("--budget-ms", metavar="MS", help="milliseconds a text may take (default: 500)")
    share = "per cent of the texts of each bucket that must be within the budget (default: 99)"
    add("--percentile", default="99", metavar="P", help=share)
    add("--workload", type=Path, metavar="FILE", help="texts, one a line, or a TSV (default: medical)")
    add("--rounds", default="5", metavar="N", help="times each text is measured (default: 5)")
    add("--warmup", default="1", metavar="N", help="rounds before those that count (default: 1)")
    add("--threads", default="1", metavar="N", help="threads of the runtime (default: 1)")
    several = "of greedy, beamN and glossary, with commas: a row for each (default: the bundle's own search)"
    add("--modes", metavar="MODES", help=several)
    add("--beam", default=None, metavar="N", help="short for --modes beamN")
    add("--json", type=Path, metavar="FILE", help="write everything, with each single time, as JSON")
    add("--report", type=Path, metavar="FILE.html", help="write a page with plots")
    derived.configure(parser)
    parser.epilog = "Exit code: 0 within the budget, 1 over it, 2 if nothing could be measured."


def run(args: argparse.Namespace) -> int:
    """Exit code 1 says "over the budget" and nothing else: whatever else goes wrong is 2."""
    try:
        return _run(args)
    except EdgemtError as error:
        raise UsageError(str(error)) from None


def _run(args: argparse.Namespace) -> int:
    if derived.asked_for(args):
        return derived.run(args)
    from edgemt.bench.contenders import Mode
    from edgemt.bench.facts import emulator, machine_facts
    from edgemt.bench.results import Settings, build
    from edgemt.bench.table import render
    from edgemt.bench.workload import read_workload

    settings = Settings(
        budget_ms=options.number(args.budget_ms or "500", "--budget-ms", above=0),
        percentile=options.number(args.percentile, "--percentile", above=0, most=100),
        rounds=options.count(args.rounds, "--rounds", 1),
        warmup=options.count(args.warmup, "--warmup", 0),
        threads=options.count(args.threads, "--threads", 1),
        beam=None if args.beam is None else options.count(args.beam, "--beam", 1),
    )
    if args.beam and args.modes:
        raise UsageError("--beam and --modes say the same thing; give one of them (--modes beam4)")
    modes = list(dict.fromkeys(map(Mode.parse, (args.modes or "").split(",")))) if args.modes else []
    if settings.beam:
        modes = [Mode.of_beam(settings.beam)]
    workload = read_workload(args.workload)
    if any(mode.glossary for mode in modes) and not any(s.terms for s in workload.sentences):
        raise UsageError(
            f"the workload {workload.name} has no terms for --modes glossary; "
            "give it a column terms (source=target; source=target)"
        )
    for path, option in ((args.json, "--json"), (args.report, "--report")):
        options.check_writable(path, option)
    if args.report:
        options.check_report_packages()
    if name := emulator():
        raise UsageError(
            f"this process runs under {name}, whose times are not the device's; measure on the device"
        )

    from edgemt.bench.measure import measure
    from edgemt.bench.prepare import prepare, speakable
    from edgemt.bundle import open_bundle

    bundles = [open_bundle(path) for path in args.bundle or [None]]
    workload, skipped = speakable(workload, bundles)
    contenders, rows = prepare(bundles, modes, workload.sentences, settings.threads, _progress)
    samples = measure(
        contenders,
        workload.sentences,
        rounds=settings.rounds,
        warmup=settings.warmup,
        progress=_progress,
    )
    _progress("", 1)
    data = build(settings, workload, rows, samples, machine_facts(settings.threads), skipped)
    print(render(data))
    if args.json:
        options.write(args.json, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    if args.report:
        from edgemt.bench.page import page

        options.write(args.report, page(data))
    return 0 if data["verdict"]["within_budget"] else 1


def _progress(what: str, share: float) -> None:
    """One line on stderr that overwrites itself, only where somebody looks at it."""
    if sys.stderr.isatty():
        line = f"{what} {share:4.0%}" if what else ""
        print(f"\r{line:<40}", end="" if what else "\r", file=sys.stderr, flush=True)
