"""The options of `edgemt bench`: numbers that are numbers, files that can be written."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgemt.bench.arrivals import KINDS, Arrivals
from edgemt.bench.contenders import Mode
from edgemt.bench.foreign import Foreign
from edgemt.bench.results import Settings
from edgemt.bench.workload import Workload, one_text, read_workload
from edgemt.errors import UsageError

BUDGET_MS, ROUNDS = "500", "5"


def number(text: str, option: str, above: float, most: float = math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (above < value <= most and math.isfinite(value)):
        limit = f"above {above:g}" + (f" and at most {most:g}" if most < math.inf else "")
        raise UsageError(f"{option} is {text!r}; give a number {limit}")
    return value


def count(text: str, option: str, least: int, word: str = "") -> int:
    """A whole number. `word` is what else the option takes, for the message."""
    if not (text.isascii() and text.isdigit() and least <= int(text) <= 1_000_000):
        also = f", or {word}" if word else ""
        raise UsageError(f"{option} is {text!r}; give a whole number, at least {least}{also}")
    return int(text)


def check_writable(path: Path | None, option: str) -> None:
    """Find out now, not after minutes of measuring, that a file cannot be written."""
    if path is None:
        return
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write {option} {path} ({error.strerror}); name a file in a folder you may write to"
        ) from None


def check_report_packages() -> None:
    """Only looked for, not imported yet: the process that is measured stays as the device has it."""
    for package in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"--report needs the package {package}, which is not installed; "
                "run: pip install 'edgemt[report]'"
            )


def write(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(
            f"cannot write {path} ({error.strerror}); free some space or name another file"
        ) from None


def settings(args: argparse.Namespace) -> Settings:
    """The numbers of the run. Raises UsageError for one that is none and for options that exclude others."""
    rate, soak, beam = args.rate is not None, args.soak is not None, args.beam is not None
    if soak and (rate or args.rounds is not None):
        raise UsageError(
            "--soak goes on for its minutes, one text after the other; leave out --rate and --rounds"
        )
    if args.arrivals and not rate:
        raise UsageError("--arrivals says how the texts of --rate come; give --rate too")
    if beam and args.modes is not None:
        raise UsageError("--beam and --modes say the same thing; give one of them (--modes beam4)")
    auto = args.threads == "auto"
    kind = args.arrivals or KINDS[0]
    return Settings(
        budget_ms=number(_or(args.budget_ms, BUDGET_MS), "--budget-ms", above=0),
        percentile=number(args.percentile, "--percentile", above=0, most=100),
        rounds=count(_or(args.rounds, ROUNDS), "--rounds", 1),
        warmup=count(args.warmup, "--warmup", 0),
        threads=1 if auto else count(args.threads, "--threads", 1, word="auto"),
        beam=count(args.beam, "--beam", 1) if beam else None,
        arrivals=Arrivals(number(args.rate, "--rate", above=0), kind) if rate else None,
        soak_minutes=number(args.soak, "--soak", above=0) if soak else None,
    )


def _or(given: str | None, default: str) -> str:
    return default if given is None else given


def modes(args: argparse.Namespace) -> list[Mode]:
    """As asked for with --modes or --beam; empty: each bundle's own."""
    if args.beam is not None:
        return [Mode.of_beam(count(args.beam, "--beam", 1))]
    return [] if args.modes is None else list(dict.fromkeys(map(Mode.parse, args.modes.split(","))))


def workload(args: argparse.Namespace, wanted: Sequence[Mode]) -> Workload:
    """The texts, with the terms of --glossary. Raises UsageError if they cannot be read, or lack terms that a
    mode needs."""
    if args.text is not None and args.workload:
        raise UsageError("--text and --workload both give the texts; leave out one of them")
    found = read_workload(args.workload) if args.text is None else one_text(args.text)
    with_terms = any(mode.glossary for mode in wanted)
    if args.glossary and not with_terms:
        raise UsageError("--glossary is for the mode of that name; add --modes glossary")
    if args.glossary:
        from edgemt.glossary import Glossary, read_glossary

        terms = read_glossary(args.glossary) or Glossary({})
        texts = [replace(s, terms=terms if terms.find(s.source) else {}) for s in found.sentences]
        found = replace(found, sentences=texts)
    if with_terms and not any(s.terms for s in found.sentences):
        raise UsageError(
            f"no term of --glossary occurs in the workload {found.name}; give others"
            if args.glossary
            else f"the workload {found.name} has no terms for --modes glossary; give them with --glossary, "
            "or in a column terms (source=target; source=target)"
        )
    return found


def foreigns(args: argparse.Namespace) -> list[Foreign]:
    """The commands, none of them started yet."""
    if args.no_bundle and not args.commands:
        raise UsageError("--no-bundle leaves nothing to measure; give a --command")
    if args.no_bundle and (args.bundle or args.modes or args.beam or args.threads != "1"):
        raise UsageError(
            "--no-bundle measures commands alone; leave out --bundle, --modes, --beam and --threads"
        )
    timeout_s = number(args.command_timeout, "--command-timeout", above=0)
    return [Foreign(command, args.command_lines, timeout_s) for command in args.commands]
