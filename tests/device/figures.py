"""Counted rows as data (edgemt/data/instructions.json) and as the tables of docs/emulated.md."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.device import blocks, emulate
from tests.device.blocks import Counts

DATA = emulate.REPOSITORY / "edgemt" / "data" / "instructions.json"
PAGE = emulate.REPOSITORY / "docs" / "emulated.md"
BETWEEN = re.compile(r"(<!-- figures -->\n).*(<!-- end of figures -->)", re.DOTALL)
PEER = "ctranslate2"
COLUMNS = (
    "model",
    "bucket",
    "tokens",
    "total, M",
    "native, M",
    "Python, M",
    "SDOT, M",
    "loads, MB",
    "native / floor",
    "total / CTranslate2 INT8",
)


@dataclass(frozen=True)
class Text:
    """A text, counted."""

    bucket: int
    source_tokens: int
    target_tokens: int
    translation: str
    counts: Counts  # mean of the repeats
    spread: float  # the largest difference between repeats, relative to the mean
    floor: int  # instructions of the matrix products with weights at the least


@dataclass(frozen=True)
class Row:
    """A model at a beam width."""

    name: str
    digest: str
    precision: str
    beam: int
    tools: dict[str, str]
    texts: list[Text]


def to_json(row: Row) -> dict[str, Any]:
    """Means a text by bucket, and a fit over all texts; instructions of one warm translation."""
    a = np.array([[1, text.source_tokens, text.target_tokens] for text in row.texts], float)
    totals = np.array([text.counts.total for text in row.texts], float)
    base, source, target = np.linalg.lstsq(a, totals, rcond=None)[0]
    buckets = []
    for bucket in sorted({text.bucket for text in row.texts}):
        some = [text for text in row.texts if text.bucket == bucket]
        counts = blocks.mean([text.counts for text in some])
        buckets.append(
            {
                "tokens": bucket,
                "texts": len(some),
                "source_tokens": round(float(np.mean([text.source_tokens for text in some])), 1),
                "target_tokens": round(float(np.mean([text.target_tokens for text in some])), 1),
                "instructions": {
                    "total": counts.total,
                    "native": counts.native,
                    "python": counts.python,
                    "floor": int(np.mean([text.floor for text in some])),
                },
                "sdot": counts.dots,
                "load_bytes": counts.load_bytes,
            }
        )
    return {
        "name": row.name,
        "digest": row.digest,
        "precision": row.precision,
        "beam": row.beam,
        "threads": 1,
        "tools": row.tools,
        "fit": {
            "base": round(base),
            "per_source_token": round(source),
            "per_target_token": round(target),
        },
        "buckets": buckets,
    }


def merge(rows: Sequence[Row], path: Path = DATA) -> dict[str, Any]:
    """Put the rows into the data file, in place of those of the same name, precision and beam."""
    new = [to_json(row) for row in rows]
    known = {key(entry) for entry in new}
    old = json.loads(path.read_text())["bundles"] if path.exists() else []
    version = subprocess.run([emulate.qemu(), "--version"], capture_output=True, text=True).stdout
    data = {
        "format": "edgemt-instructions",
        "format_version": "1.0",
        "cpu": emulate.CPU,
        "how": f"{version.splitlines()[0]}, TCG plugin tests/device/count.c",
        "bundles": [entry for entry in old if key(entry) not in known] + new,
    }
    write(path, json.dumps(data, indent=1) + "\n")
    return data


def key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["name"], entry["precision"], entry["beam"]


def write_page(data: dict[str, Any], path: Path = PAGE) -> None:
    """Put the tables between the marks in the page."""
    text = path.read_text(encoding="utf-8")
    write(path, BETWEEN.sub(lambda found: f"{found[1]}{tables(data)}{found[2]}", text))


def write(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def tables(data: dict[str, Any]) -> str:
    """Markdown: a table a beam width."""
    parts = [f"Emulated Cortex-A76, instructions ({data['how']}; one thread).\n"]
    for beam in sorted({entry["beam"] for entry in data["bundles"]}):
        entries = [entry for entry in data["bundles"] if entry["beam"] == beam]
        peers = {
            bucket["tokens"]: bucket
            for entry in entries
            if entry["name"] == PEER and entry["precision"].startswith("int8")
            for bucket in entry["buckets"]
        }
        parts.append(f"### {'Greedy' if beam == 1 else f'Beam {beam}'}\n")
        parts.append("| " + " | ".join(COLUMNS) + " |\n| --- " + "| ---: " * (len(COLUMNS) - 1) + "|")
        for entry in entries:
            for bucket in entry["buckets"]:
                some = bucket["instructions"]
                peer = peers.get(bucket["tokens"])
                cells = [
                    f"{entry['name']} ({entry['precision']})",
                    bucket["tokens"],
                    f"{bucket['source_tokens']:g} → {bucket['target_tokens']:g}",
                    f"{some['total'] / 1e6:.1f}",
                    f"{some['native'] / 1e6:.1f}",
                    f"{some['python'] / 1e6:.2f}",
                    f"{bucket['sdot'] / 1e6:.1f}",
                    f"{bucket['load_bytes'] / 1e6:.0f}",
                    f"{some['native'] / some['floor']:.2f}",
                    f"{some['total'] / peer['instructions']['total']:.2f}" if peer else "–",
                ]
                parts.append("| " + " | ".join(map(str, cells)) + " |")
        parts.append("")
    return "\n".join(parts) + "\n"


def summary(row: Row) -> str:
    """A few lines for the terminal."""
    lines = [f"{row.name} {row.precision} beam {row.beam}"]
    for bucket in to_json(row)["buckets"]:
        some = bucket["instructions"]
        spread = max(text.spread for text in row.texts if text.bucket == bucket["tokens"])
        lines.append(
            f"  {bucket['tokens']:3d}  {bucket['source_tokens']:5.1f} -> {bucket['target_tokens']:5.1f}"
            f"  total {some['total'] / 1e6:7.2f}  native {some['native'] / 1e6:7.2f}"
            f"  python {some['python'] / 1e6:5.2f}  SDOT {bucket['sdot'] / 1e6:6.2f}"
            f"  loads {bucket['load_bytes'] / 1e6:6.1f} MB  floor {some['floor'] / 1e6:6.2f}"
            f"  native/floor {some['native'] / some['floor']:4.2f}  spread {spread:.2%}"
        )
    return "\n".join(lines)
