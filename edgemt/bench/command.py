"""`edgemt bench`: measure latency against a budget. See docs/bench.md."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from edgemt.bench import derived, options
from edgemt.bench.arrivals import KINDS
from edgemt.bench.foreign import LINES
from edgemt.errors import EdgemtError, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    several = "bundle to measure; several are measured side by side (default: the one that edgemt has)"
    add("-b", "--bundle", action="append", type=Path, metavar="BUNDLE", help=several)
    add("--budget-ms", metavar="MS", help="milliseconds a text may take (default: 500)")
    share = "per cent of the texts of each bucket that must be within the budget (default: 99)"
    add("--percentile", default="99", metavar="P", help=share)
    add("--workload", type=Path, metavar="FILE", help="texts, one a line, or a TSV (default: medical)")
    add("--text", help="measure this text alone")
    add("--rounds", metavar="N", help="times each text is measured (default: 5)")
    add("--warmup", default="1", metavar="N", help="rounds before those that count (default: 1)")
    add("--threads", default="1", metavar="N", help="threads of the runtime, or auto (default: 1)")
    several = "of greedy, beamN and glossary, with commas: a row for each (default: the bundle's own search)"
    add("--modes", metavar="MODES", help=several)
    add("--beam", metavar="N", help="short for --modes beamN")
    terms = "terms for the mode glossary: a file or term=term (default: the workload's own)"
    add("--glossary", action="append", metavar="TERMS", help=terms)
    load = parser.add_argument_group("load (default: one text after the other)").add_argument
    load("--rate", metavar="R", help="R texts a second, whether or not the last one is done")
    load("--arrivals", choices=KINDS, help="at random or equal distances (default: poisson)")
    load("--soak", metavar="MINUTES", help="one text after the other for so long, to see what heat does")
    other = parser.add_argument_group("other translators").add_argument
    command = "a translator to measure beside the bundles: it reads a line and answers with a line"
    other("--command", action="append", default=[], dest="commands", metavar="COMMAND", help=command)
    lines = "what it is given: the text, or languages and text with tabs (default: text)"
    other("--command-lines", choices=LINES, default="text", help=lines)
    other("--command-timeout", default="60", metavar="S", help="seconds for an answer (default: 60)")
    other("--no-bundle", action="store_true", help="measure the commands alone")
    add("--strict", action="store_true", help="exit with 3 if the run was disturbed")
    add("--json", type=Path, metavar="FILE", help="write everything, with each single time, as JSON")
    add("--report", type=Path, metavar="FILE.html", help="write a page with plots")
    derived.configure(parser)
    parser.epilog = (
        "Exit code: 0 within the budget, 1 over it, 2 if nothing could be measured, "
        "3 (--strict) if the run was disturbed."
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 1 says "over the budget" and nothing else: whatever else goes wrong is 2."""
    try:
        return _run(args)
    except EdgemtError as error:
        raise UsageError(str(error)) from None


def _run(args: argparse.Namespace) -> int:
    if derived.asked_for(args):
        return derived.run(args)
    from edgemt.bench.facts import emulator, machine_facts
    from edgemt.bench.results import build
    from edgemt.bench.table import render

    settings, modes = options.settings(args), options.modes(args)
    workload = options.workload(args, modes)
    foreigns = options.foreigns(args)
    for path, option in ((args.json, "--json"), (args.report, "--report")):
        options.check_writable(path, option)
    if args.report:
        options.check_report_packages()
    if name := emulator():
        raise UsageError(
            f"this process runs under {name}, whose times are not the device's; measure on the device"
        )

    from edgemt.bench.measure import measure
    from edgemt.bench.prepare import own_mode, prepare_bundles, prepare_commands, speakable
    from edgemt.bench.stages import stages
    from edgemt.bundle import open_bundle

    bundles = [] if args.no_bundle else [open_bundle(path) for path in args.bundle or [None]]
    workload, skipped = speakable(workload, bundles)
    sentences = workload.sentences
    with ExitStack() as stack:
        for foreign in foreigns:
            stack.enter_context(foreign)
        # The commands first: one that cannot be run is said at once.
        commands, command_rows = prepare_commands(foreigns, sentences, _progress)
        if args.threads == "auto":
            from edgemt.bench.threads import candidates, choose_threads, usable_cores

            mode = modes[0] if modes else own_mode(bundles[0])
            counts = candidates(usable_cores())
            threads, tried = choose_threads(bundles, mode, sentences, counts, _progress)
            settings = replace(settings, threads=threads, threads_tried=tried)
        loaded, rows = prepare_bundles(bundles, modes, sentences, settings.threads, _progress)
        samples = measure(
            [*loaded, *commands],
            sentences,
            rounds=settings.rounds,
            warmup=settings.warmup,
            seconds=settings.soak_minutes and settings.soak_minutes * 60,
            arrivals=settings.arrivals,
            progress=_progress,
        )
    rows = [
        replace(row, stages=stages(contender, sentences, settings.rounds, _progress))
        for row, contender in zip(rows, loaded, strict=True)
    ]
    _progress("", 1)
    facts = machine_facts(settings.threads)
    data = build(settings, workload, [*rows, *command_rows], samples, facts, skipped)
    print(render(data))
    if args.json:
        options.write(args.json, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    if args.report:
        from edgemt.bench.page import page

        options.write(args.report, page(data))
    if args.strict and data["verdict"]["disturbed"]:
        return 3
    return 0 if data["verdict"]["within_budget"] else 1


def _progress(what: str, share: float) -> None:
    """One line on stderr that overwrites itself, only where somebody looks at it."""
    if sys.stderr.isatty():
        line = f"{what} {share:4.0%}" if what else ""
        print(f"\r{line:<40}", end="" if what else "\r", file=sys.stderr, flush=True)
