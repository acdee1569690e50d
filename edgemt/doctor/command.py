"""`edgemt doctor`: look at everything, say it plainly, and exit with 1 if the device side does not work."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgemt import __version__
from edgemt.doctor import packages, system, trial
from edgemt.doctor.finding import Finding, State, at_home, pip_install, without_home

MARKS: dict[State, str] = {"ok": "ok", "note": "--", "warning": "!!", "absent": "--", "broken": "XX"}
LIBRARIES = {"libstdc++.so.6": "libstdc++6", "libgomp.so.1": "libgomp1", "libatomic.so.1": "libatomic1"}


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-b", "--bundle", type=Path, help="a folder or .edgemt file to check besides the default bundle")
    add("--json", action="store_true", help="everything as one JSON object")
    parser.epilog = "Exit code: 0 if this machine can translate, 1 if something that this needs is broken."


def run(args: argparse.Namespace) -> int:
    facts = system.look()
    sections = {
        "machine": list(system.findings(facts)),
        "packages": list(packages.device_findings()),
        "runs": list(what_runs(args.bundle)),
        "extras": list(packages.extra_findings()),
    }
    works = all(finding.state != "broken" for found in sections.values() for finding in found)
    if args.json:
        print(json.dumps(as_json(facts, sections, works), ensure_ascii=False, indent=1))
    else:
        print("\n".join(lines(facts, sections, works)))
    return 0 if works else 1


def what_runs(bundle: Path | None) -> Iterator[Finding]:
    """Each runtime, then the default bundle and the one that was named, each in a fresh process."""
    for event in trial.attempt("imports"):
        name = event["step"]
        if "failed" in event:
            yield Finding(
                name, "broken", f"cannot be imported: {event['failed']}", import_cure(name, event["failed"])
            )
        else:
            done = event["done"]
            yield Finding(name, "ok", f"{done['version']}, imported in {done['seconds']:.2f} s")
    yield from bundle_findings(None, named=bundle is not None)
    if bundle is not None:
        yield from bundle_findings(bundle, named=False)


def import_cure(name: str, failed: str) -> str:
    for library, package in LIBRARIES.items():
        if library in failed:
            return f"sudo apt install {package}"
    absent = re.search(r"No module named '([\w.]+)'", failed)
    missing = absent[1].split(".")[0] if absent else name
    if missing == "edgemt":
        return pip_install("edgemt")
    known = {needed.name: needed.text for needed in packages.requirements() if needed.extra is None}
    return pip_install(known.get(missing, missing))


def bundle_findings(path: Path | None, named: bool) -> Iterator[Finding]:
    """Verify, load and translate; `named`: another bundle was asked for, so the default may be absent."""
    events = trial.attempt("bundle", *([str(path)] if path else []))
    facts = {event["step"]: event.get("done") for event in events}
    verified = facts.get("verify") or {}
    label = f"bundle {verified.get('name') or (at_home(path) if path else '')}".strip()
    if path is None and not verified:
        label = "default bundle"
    last = events[-1]
    if "failed" in last:
        says, _, cure = last["failed"].partition("; ")
        absent = path is None and named and "without a default bundle" in says
        before = {"load": "cannot be loaded: ", "translate": "cannot translate: "}.get(last["step"], "")
        state: State = "note" if absent else "broken"
        yield Finding(label, state, before + says, cure or import_cure("edgemt", says))
        return
    answer, loaded = facts["translate"] or {}, facts["load"] or {}
    peak = answer.get("peak_rss_bytes")
    says = (
        f"{verified['precision']} for {verified['target']}, {system.megabytes(verified['bytes'])}, "
        f"loaded in {loaded['seconds']:.2f} s"
        + (f", peak memory {system.megabytes(peak)}" if peak else "")
        + f": {answer['source']} → {answer['target']}"
    )
    yield Finding(label, "ok", says)
    if packed := loaded.get("packed"):
        state = "ok" if packed.startswith("used") else "note"
        yield Finding("packed weights", state, packed, f"edgemt prepack {at_home(path)}" if path else "")


def lines(facts: dict[str, Any], sections: dict[str, list[Finding]], works: bool) -> Iterator[str]:
    """The report for a terminal: the verdict, then what was found, each cure below what it cures."""
    broken = [finding.part for found in sections.values() for finding in found if finding.state == "broken"]
    yield (
        f"edgemt {__version__}: this machine can translate."
        if works
        else f"edgemt {__version__}: this machine cannot translate yet: {', '.join(dict.fromkeys(broken))}."
    )
    board = " ".join(str(facts[key]) for key in ("model", "soc") if facts[key])
    yield f"{board or 'unknown board'}, {facts['os'] or 'unknown system'}, kernel {facts['kernel']}"
    width = max((len(finding.part) for found in sections.values() for finding in found), default=0)
    for title, found in sections.items():
        if found:
            yield f"\n{title}"
        for finding in found:
            yield f"  {MARKS[finding.state]}  {finding.part:{width}}  {without_home(finding.says)}"
            if finding.cure and finding.state != "ok":
                yield f"      {'':{width}}  → {finding.cure}"


def as_json(facts: dict[str, Any], sections: dict[str, list[Finding]], works: bool) -> dict[str, Any]:
    """No host name, user name or serial number: the object can be attached to a public issue."""
    return {
        "format": "edgemt-doctor",
        "format_version": "1.0",
        "edgemt": __version__,
        "works": works,
        "machine": facts,
        "findings": [
            {
                "section": title,
                "part": finding.part,
                "state": finding.state,
                "says": without_home(finding.says),
                "cure": finding.cure,
            }
            for title, found in sections.items()
            for finding in found
        ],
    }
