"""From sections to one document: JSON as it is, or a page (page.py); and a few lines for the terminal."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemt import __version__
from edgemt.verify.sections import FAILED, Section

FORMAT = "edgemt-verify-report"
FORMAT_VERSION = "1.0"
# Name and title of the sections that are made in two places.
PARITY = ("parity", "Parity with transformers")
GATE = ("gate", "INT8 and INT4 against FP32")


@dataclass(frozen=True)
class Found:
    """All that was found of a model. `kind`: "checkpoint" | "bundle"."""

    name: str
    kind: str
    sections: list[Section]


def build(found: Found, command: str) -> dict[str, Any]:
    """The document: everything as JSON."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "edgemt": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "model": found.name,
        "kind": found.kind,
        "passed": all(section.status != FAILED for section in found.sections),
        "sections": [section.to_json() for section in found.sections],
    }


def summary(data: dict[str, Any], output: Path) -> str:
    width = max(len(section["title"]) for section in data["sections"])
    lines = [
        f"{section['title']:<{width}}  {section['status']:<7}  {section['reason']}".rstrip()
        for section in data["sections"]
    ]
    return "\n".join(
        [*lines, f"{data['model']}: {'passed' if data['passed'] else 'failed'}; report: {output}"]
    )
