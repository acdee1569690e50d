"""Runs as `edgemt bench --json` wrote them: read, checked, and what was not the same about them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edgemt.bench.results import FORMAT, FORMAT_VERSION
from edgemt.errors import UsageError

# What should be equal in runs that are compared: name -> keys in the file.
CONDITIONS = {
    "machine": ("machine", "model"),
    "CPU": ("machine", "cpu"),
    "cores": ("machine", "cores"),
    "CPUs allowed": ("machine", "affinity"),
    "CPU quota": ("machine", "cpu_quota"),
    "governor": ("machine", "governor"),
    "highest frequency": ("machine", "frequency_mhz", "max"),
    "kernel": ("machine", "kernel"),
    "OS": ("machine", "os"),
    "Python": ("machine", "python"),
    "threads": ("settings", "threads"),
    "thread variables": ("machine", "environment"),
}


@dataclass(frozen=True)
class Run:
    """One file: its name (the path where names are alike) and what it holds."""

    name: str
    data: dict[str, Any]

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["label"]: row for row in self.data["bundles"]}


class Side(NamedTuple):
    """Runs of one thing, called by a letter and by the name of its first file."""

    letter: str
    runs: list[Run]

    @property
    def name(self) -> str:
        more = len(self.runs) - 1
        return self.runs[0].name + (f" (+{more})" if more else "")


def read_run(path: Path) -> dict[str, Any]:
    """What the file holds. Raises UsageError unless it is a whole measurement of a version read here."""
    hint = "give files that edgemt bench --json wrote"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror}); {hint}") from None
    except ValueError:
        raise UsageError(f"{path} is not JSON; {hint}") from None
    if not isinstance(data, dict) or not str(data.get("format", "")).startswith("edgemt-"):
        raise UsageError(f"{path} is JSON, but no result of edgemt bench; {hint}")
    if data["format"] != FORMAT or data.get("kind") != "measured":
        said = data.get("kind", data["format"])
        raise UsageError(f"{path} holds no measurement ({said}); {hint}")
    version = str(data.get("format_version", "?"))
    if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise UsageError(
            f"{path} has format version {version}, and this edgemt reads {FORMAT_VERSION}; "
            "measure again with this version"
        )
    try:
        for row in data["bundles"]:
            for text in row["texts"]:
                if not text["ms"] or min(text["ms"]) <= 0:
                    raise ValueError("a time that is none")
        _ = (
            [row["label"] for row in data["bundles"]],
            data["workload"]["sha256"],
            data["verdict"]["disturbed"],
        )
        _ = [(text["line"], text["bucket"]) for row in data["bundles"] for text in row["texts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({error}); measure again, or copy it again") from None
    return data


def same_workload(runs: list[Run]) -> None:
    """Raises UsageError unless all runs had the same texts in the same way."""
    first = runs[0]
    for run in runs[1:]:
        if run.data["workload"]["sha256"] != first.data["workload"]["sha256"]:
            names = [f"{r.name} ({r.data['workload']['name']})" for r in (first, run)]
            raise UsageError(
                f"{names[0]} and {names[1]} measured different workloads; compare runs of the same texts"
            )
        ways = [way(r.data) for r in (first, run)]
        if ways[0] != ways[1]:
            raise UsageError(
                f"{first.name} measured {ways[0]} and {run.name} {ways[1]}; compare runs of one kind"
            )


def way(data: dict[str, Any]) -> str:
    """How the texts came: one at a time (so it was before version 1.1) unless the file names another way."""
    load = data.get("load", {})
    if load.get("kind") == "open":
        return f"{load['arrivals']} arrivals of {load['rate_per_s']:g} texts a second"
    if load.get("kind") == "soak":
        return f"a soak of {load['soak_minutes']:g} minutes"
    return "one text at a time"


def differences(sides: list[Side]) -> list[dict[str, Any]]:
    """Conditions that are not the same in all runs: `what` and the values of each side, in order."""
    runs = [run for side in sides for run in side.runs]
    looked_at = dict(CONDITIONS)
    packages = dict.fromkeys(name for run in runs for name in run.data.get("machine", {}).get("versions", {}))
    looked_at |= {name: ("machine", "versions", name) for name in packages}
    found = []
    for what, keys in looked_at.items():
        values = [[_value(run.data, keys) for run in side.runs] for side in sides]
        if len({value for side in values for value in side}) > 1:
            found.append({"what": what, "values": [sorted(set(side)) for side in values]})
    return found


def _value(data: dict[str, Any], keys: tuple[str, ...]) -> str:
    value: Any = data
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, dict):
        return ", ".join(f"{key}={inner}" for key, inner in value.items()) or "none"
    return "not told" if value is None else str(value)
