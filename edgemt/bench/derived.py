"""What `edgemt bench` computes and does not measure: `--compare` and `--project`."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgemt.bench import options
from edgemt.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    compare = parser.add_argument_group("comparison (measures nothing)").add_argument
    runs = "compare files of --json with the first one; repeat it for each side to give several runs of one"
    compare("--compare", action="append", nargs="+", type=Path, metavar="JSON", help=runs)
    slower = "exit with 1 if shown to be slower by more than this"
    compare("--max-slowdown", metavar="PCT", help=slower)
    project = parser.add_argument_group("projection (measures nothing)").add_argument
    project("--project", metavar="DEVICE", help="compute what a device would take, as a range: pi5")
    judge = "let a projection pass or fail --budget-ms"
    project("--accept-projection", action="store_true", help=judge)


def asked_for(args: argparse.Namespace) -> bool:
    return bool(args.compare or args.max_slowdown is not None or args.project or args.accept_projection)


def run(args: argparse.Namespace) -> int:
    """Raises UsageError for options that do not go together."""
    if args.compare and args.project:
        raise UsageError("--compare reads measured runs and --project computes one; give one of them")
    if args.max_slowdown is not None and not args.compare:
        raise UsageError("--max-slowdown judges a comparison; name the runs with --compare")
    if args.accept_projection and not args.project:
        raise UsageError("--accept-projection judges a projection; name the device with --project")
    return _project(args) if args.project else _compare(args)


def _compare(args: argparse.Namespace) -> int:
    from edgemt.bench.compare import run as compare

    _without(args, "--compare", "bundle", "workload", "text", "modes", "beam", "budget_ms")
    sides = args.compare if len(args.compare) > 1 else [[path] for path in args.compare[0]]
    slowdown = args.max_slowdown
    return compare(
        sides,
        json_path=args.json,
        report=args.report,
        max_slowdown=None if slowdown is None else options.number(slowdown, "--max-slowdown", above=-1),
        strict=args.strict,
    )


def _project(args: argparse.Namespace) -> int:
    from edgemt.bench.contenders import Mode
    from edgemt.bench.project import Settings
    from edgemt.bench.project import run as project
    from edgemt.bench.workload import read_workload
    from edgemt.bundle import open_bundle

    _without(args, "--project", "report", "rate", "soak", "commands", "text")
    if args.budget_ms is not None and not args.accept_projection:
        raise UsageError(
            "a projection is no measurement and passes or fails no budget; "
            "leave out --budget-ms, or add --accept-projection"
        )
    judged = args.budget_ms or "500" if args.accept_projection else None
    settings = Settings(
        threads=options.count(args.threads, "--threads", 1),
        percentile=options.number(args.percentile, "--percentile", above=0, most=100),
        budget_ms=None if judged is None else options.number(judged, "--budget-ms", above=0),
    )
    modes = [Mode.parse(mode) for mode in args.modes.split(",")] if args.modes else []
    if args.beam:
        modes.append(Mode.of_beam(options.count(args.beam, "--beam", 1)))
    bundles = [open_bundle(path) for path in args.bundle or [None]]
    return project(
        args.project, bundles, read_workload(args.workload), settings, modes=modes, json_path=args.json
    )


def _without(args: argparse.Namespace, option: str, *names: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]
    if given:
        raise UsageError(f"{option} measures nothing; leave out {', '.join(given)}")
