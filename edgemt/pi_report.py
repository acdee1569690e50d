"""`python -m edgemt.pi_report`: look at this board, measure it, and write one file to attach to an issue.

script/pi-report and the command `pi-report` of an installed kit run this. It installs nothing, needs no
network, and writes neither host name nor user name nor serial number.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from edgemt import __version__
from edgemt.bench.facts import cores, emulator
from edgemt.doctor.finding import at_home, without_home
from edgemt.errors import EdgemtError, UsageError
from edgemt.stops import Stopped, stoppable

LENGTH = 25  # source tokens of the row that the table of reports takes
STYLE = (
    "body{font:16px/1.4 sans-serif;margin:1em auto;max-width:60em;padding:0 1em}"
    "pre{overflow-x:auto;font-size:13px}"
)


class Step(NamedTuple):
    """A command of edgemt; `{json}` in its arguments is the file that it writes, if it does."""

    name: str
    title: str
    arguments: list[str]
    fine: tuple[int, ...]  # exit codes that are no failure: being over a budget is a result


class Done(NamedTuple):
    step: Step
    code: int
    output: str  # what it printed, then what it complained about
    data: dict[str, Any] | None


def steps(threads: list[int], minutes: float, rounds: int, bundle: Path | None) -> Iterator[Step]:
    named = ["-b", str(bundle.resolve())] if bundle else []
    yield Step("doctor", "Check", ["doctor", "--json", *named], (0, 1))
    measured = ["bench", *named, "--modes", "greedy", "--json={json}"]
    for count in threads:
        title = f"The standard workload with {count} thread" + "s" * (count > 1)
        yield Step(f"bench-{count}", title, [*measured, f"--threads={count}", f"--rounds={rounds}"], (0, 1))
    if minutes > 0:
        most = threads[-1]
        title = f"Heat: {minutes:g} minutes without a pause, {most} thread" + "s" * (most > 1)
        yield Step("soak", title, [*measured, f"--threads={most}", f"--soak={minutes:g}"], (0, 1))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="pi-report", description="Check and measure this board; write one file to attach to an issue."
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="FILE.tar.gz", help="the report (default: named by the date)")
    add("-b", "--bundle", type=Path, help="bundle to measure (default: the one that edgemt has)")
    add("--minutes", type=float, default=10, metavar="N", help="of the heat test, 0 for none (default: 10)")
    add("--rounds", type=int, default=5, metavar="N", help="times each text is measured (default: 5)")
    add("--threads", metavar="N,N", help="thread counts to measure (default: 1 and 4, or what there is)")
    args = parser.parse_args(argv)
    try:
        with stoppable():
            return report(args)
    except EdgemtError as error:
        print(f"pi-report: {error}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        print(f"pi-report: {stopped.reason}, nothing was written", file=sys.stderr)
        return stopped.exit_code


def report(args: argparse.Namespace) -> int:
    if name := emulator():
        raise UsageError(f"this process runs under {name}, whose times say nothing; run it on the device")
    if args.minutes < 0 or args.rounds < 1:
        raise UsageError("--minutes must be 0 or more and --rounds 1 or more")
    threads = thread_counts(args.threads)
    created = datetime.now(UTC)
    output = args.output or Path(f"edgemt-report-{created:%Y-%m-%d-%H%M}.tar.gz")
    if output.is_dir() or not os.access(output.absolute().parent, os.W_OK):
        raise UsageError(f"{output} cannot be written; name a file in a folder of yours with -o")

    done: list[Done] = []
    with tempfile.TemporaryDirectory(prefix="edgemt-report-") as work:
        for step in steps(threads, args.minutes, args.rounds, args.bundle):
            print(f"{step.title} …", file=sys.stderr, flush=True)
            done.append(run(step, Path(work)))
            if done[-1].code not in step.fine:
                print(f"pi-report: {last_line(done[-1].output)}", file=sys.stderr)
            if step.name == "doctor" and done[-1].code != 0:
                break  # what cannot translate cannot be measured
    failed = [one for one in done if one.code not in one.step.fine] or [
        one for one in done if one.step.name == "doctor" and one.code != 0
    ]
    write(output, created, done, failed)
    rows = list(table_rows(created, done))
    print("\n".join(headline(done)))
    print(f"Written to {at_home(output)}; attach it to an issue. Nothing in it names you or your machine.")
    if failed:
        print(f"Not everything ran: {', '.join(one.step.name for one in failed)}; the report says why.")
    print("\n".join(rows))
    return 1 if failed else 0


def thread_counts(text: str | None) -> list[int]:
    """1 and 4, or as many as this machine has; ascending."""
    available = len(os.sched_getaffinity(0))
    if text is None:
        return sorted({1, min(4, available)})
    counts = sorted({int(part) if part.isdigit() else 0 for part in text.split(",")})
    if counts[0] < 1 or counts[-1] > cores():
        raise UsageError(f"--threads {text}: give numbers from 1 to {cores()}, with commas")
    return counts


def run(step: Step, work: Path) -> Done:
    """Run a command of edgemt in a process of its own."""
    file = work / f"{step.name}.json"
    arguments = [part.replace("{json}", str(file)) for part in step.arguments]
    command = [sys.executable, "-I" if sys.flags.isolated else "-P", "-m", "edgemt.cli", *arguments]
    child = subprocess.run(command, capture_output=True)
    printed = child.stdout.decode(errors="replace")
    errors = child.stderr.decode(errors="replace").replace(str(file), file.name)
    text = file.read_text(encoding="utf-8") if file.is_file() else printed if step.name == "doctor" else ""
    try:
        data = json.loads(without_home(text)) if text else None
    except ValueError:
        data = None
    if step.name == "doctor" and data is not None:
        printed = "\n".join(findings(data)) + "\n"
    return Done(step, child.returncode, without_home(printed + errors), data)


def findings(data: dict[str, Any]) -> Iterator[str]:
    """What `edgemt doctor` found, but for the extras of a workshop."""
    for finding in data["findings"]:
        if finding["section"] != "extras":
            yield f"{finding['state']:8} {finding['part']}: {finding['says']}"
            if finding["cure"] and finding["state"] != "ok":
                yield f"{'':8} cure: {finding['cure']}"


def headline(done: list[Done]) -> list[str]:
    """What has to be read first: which board, and what spoils the figures."""
    machine = machine_of(done)
    model = machine.get("model") or machine.get("cpu") or "an unknown board"
    lines = [f"edgemt {__version__} on {model}"]
    if "Raspberry Pi" not in model:
        lines.append("This is not a Raspberry Pi: its figures say nothing about one.")
    for one in done:
        for reason in ((one.data or {}).get("verdict") or {}).get("disturbed") or []:
            lines.append(f"Disturbed ({one.step.name}): {reason}.")
    return lines


def machine_of(done: list[Done]) -> dict[str, Any]:
    return next((one.data["machine"] for one in done if one.data and "machine" in one.data), {})


def table_rows(created: datetime, done: list[Done]) -> Iterator[str]:
    """Rows for the table in docs/raspberry-pi.md, one a thread count and bundle."""
    machine = machine_of(done)
    for one in done:
        for bundle in (one.data or {}).get("bundles") or []:
            bucket = next((b for b in bundle["buckets"] if b["tokens"] == LENGTH), None)
            if bucket is None:
                continue
            rss = bundle.get("peak_rss_bytes")
            cells = [
                f"{created:%Y-%m-%d}",
                str(machine.get("model") or machine.get("cpu")),
                f"{(machine.get('memory_bytes') or 0) / 1e9:.0f} GB",
                str(machine.get("os")),
                __version__,
                bundle["label"],
                one.step.name,
                str((one.data or {})["settings"]["threads"]),
                f"{bucket['p50']['ms']:.1f}",
                f"{bucket['p99']['ms']:.1f}",
                f"{rss / 1e6:.0f} MB" if rss else "",
                "yes" if ((one.data or {}).get("verdict") or {}).get("disturbed") else "no",
            ]
            yield "| " + " | ".join(re.sub(r"[|\n]", " ", cell) for cell in cells) + " |"


def page(created: datetime, done: list[Done], failed: list[Done]) -> str:
    """One page that needs nothing else."""
    top = headline(done)
    top += [f"Failed: {one.step.name}: {last_line(one.output)}" for one in failed]
    parts = [f"<h1>{html.escape(top[0])}</h1>", f"<p>{created:%Y-%m-%d %H:%M} UTC</p>"]
    parts += [f"<p><strong>{html.escape(line)}</strong></p>" for line in top[1:]]
    for one in done:
        parts.append(f"<h2>{html.escape(one.step.title)}</h2>\n<pre>{html.escape(one.output)}</pre>")
    rows = "\n".join(table_rows(created, done))
    parts.append(f"<h2>Rows for the table of reports</h2>\n<pre>{html.escape(rows)}</pre>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
    head += f"<title>{html.escape(top[0])}</title>"
    return "\n".join(
        ["<!doctype html>", f"<html lang=en><head>{head}</head><body>", *parts, "</body></html>", ""]
    )


def write(path: Path, created: datetime, done: list[Done], failed: list[Done]) -> None:
    """The archive, under a temporary name until it is complete. Its entries name no user."""
    files = {"report.html": page(created, done, failed)}
    for one in done:
        if one.data is not None:
            files[f"{one.step.name}.json"] = json.dumps(one.data, ensure_ascii=False, indent=1) + "\n"
    partial = path.with_name(f".{path.name}.partial")
    try:
        with tarfile.open(partial, "w:gz", format=tarfile.GNU_FORMAT) as archive:
            for name, text in files.items():
                data = text.encode()
                entry = tarfile.TarInfo(f"edgemt-report/{name}")
                entry.size, entry.mtime = len(data), int(created.timestamp())
                archive.addfile(entry, io.BytesIO(data))
        partial.replace(path)
    except OSError as error:
        raise EdgemtError(f"{path} could not be written ({error.strerror}); free some space") from None
    finally:
        partial.unlink(missing_ok=True)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


if __name__ == "__main__":
    sys.exit(main())
