"""The export report: one dictionary in, `report.json` and a self-contained `report.html` out.

`write_report(directory, data)` takes the dictionary below. Every key is optional but `name`; a section whose
key is absent is left out of the page. Sizes are in bytes, times in the unit their key names, dates ISO 8601.

    name        str             "medical-zh-en"
    created     str             "2026-11-24T12:00:00Z"
    command     str             the command line as typed
    passed      bool            the whole export
    reasons     [str]           why it failed, or what to know; one sentence each
    chosen      str             the variant that was sealed, a key of `variants`
    choice      str             one sentence: why that one
    source      {label: value}  checkpoint, sha256, architecture, parameters, languages, licence, training …
    stages      [{"name": str, "seconds": float, "peak_rss_mb": float | None}]
    parity      {"max_abs_error": float, "tolerance": float, "logit_std": float, "sentences": int,
                 "tokens": int, "equal": int, "excused": int, "passed": bool}
                                tokens compared, equal, and unequal where torch's margin was within error
    variants    {name: variant} in the order of the tables: "fp32" first, then "int8-static", "int8-dynamic" …
                  variant = {"bytes": int,
                             "gate": GateResult.to_json() | None,   (edgemt.calibration.gate; None for FP32)
                             "latency": {"p50_ms": float, "p90_ms": float, "p99_ms": float,
                                         "ratio": float, "ratio_low": float, "ratio_high": float} | None}
                                ratio: time over FP32's time of the same sentences in the same rounds,
                                with the spread over rounds; below 1 is faster
    latency     {label: value}  how it was clocked: threads, sentences, rounds, method …
    calibration {label: value}  observer, sentences, steps, tensors, seconds, peak RSS, hash …
    activations {tensor: {"role": str, "low": float, "high": float, "sqnr_db": float | None}}
                                QuantSpec.to_json()["activations"]
    samples     [{"direction": "zh-en", "source": str, "reference": str, "outputs": {variant: str}}]
    machine     {label: value}  processor, cores, memory, system
    provenance  {label: value}  versions, hashes

Values of the free tables may be str, int, float, bool or None; nested values are folded away as JSON.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemt.errors import EdgemtError

FORMAT = "edgemt-export-report"
FORMAT_VERSION = "1.0"
WORST_SHOWN = 24  # tensors in the sensitivity plot


def write_report(directory: Path, data: Mapping[str, Any]) -> None:
    """Write `report.json` and `report.html` into `directory`, which must exist.

    Each stands under its name only when whole. Raises EdgemtError if the directory cannot be written.
    """
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, **data}
    texts = {
        "report.json": json.dumps(document, ensure_ascii=False, indent=1) + "\n",
        "report.html": render(document),
    }
    for name, text in texts.items():
        path = Path(directory) / name
        partial = path.with_name(f".{name}.{os.getpid()}")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            cure = "free space or choose another folder"
            raise EdgemtError(f"{path} cannot be written ({error.strerror}); {cure}") from None


def render(document: Mapping[str, Any]) -> str:
    """The page: no scripts, no requests, readable on a phone and on paper."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgemt.export", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"mb": megabytes, "plain": plain, "duration": duration}
    activations = document.get("activations") or {}
    known = sorted(entry["sqnr_db"] for entry in activations.values() if entry["sqnr_db"] is not None)
    return environment.get_template("report.html").render(
        report=document,
        quality=quality_rows(document.get("variants") or {}),
        sensitivity=sensitivity_svg(activations) if known else "",
        tensors=len(known),
        median=known[len(known) // 2] if known else None,
    )


def quality_rows(variants: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Per direction, one row a variant: FP32's own scores first, then each gated variant's.

    FP32 is decoded once and judged against each variant: its scores stand in every gate as `reference`.
    """
    metrics = ("bleu", "chrf")
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, variant in variants.items():
        for direction, result in ((variant.get("gate") or {}).get("directions") or {}).items():
            table = rows.setdefault(direction, [{"variant": "fp32", "sentences": result["sentences"]}])
            table[0] |= {metric: {"score": result[metric]["reference"]} for metric in metrics}
            scores = {metric: {**result[metric], "score": result[metric]["candidate"]} for metric in metrics}
            table.append({**result, **scores, "variant": name})
    return rows


def sensitivity_svg(activations: Mapping[str, Mapping[str, Any]]) -> str:
    """The tensors that 8 bits hurt most: signal to quantisation noise in dB, worst on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    known = [(entry["sqnr_db"], name) for name, entry in activations.items() if entry["sqnr_db"] is not None]
    ranked = sorted(known)[:WORST_SHOWN]
    values, names = [value for value, _ in ranked], [name for _, name in ranked]
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "edgemt",
        "font.size": 8,
        "font.family": "sans-serif",
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(5, 0.5 + 0.3 * len(ranked)))
        rows = range(len(ranked))
        left = min(0.0, *values) if len(values) > 1 else min(0.0, values[0])
        axes.hlines(rows, left, values, color="#0a7d8c", linewidth=2)
        axes.plot(values, rows, "o", color="#0a7d8c", markersize=4)
        for row, name, value in zip(rows, names, values, strict=True):
            axes.text(left, row - 0.28, name, va="bottom", ha="left")
            axes.annotate(f"{value:.1f}", (value, row), (6, 0), textcoords="offset points", va="center")
        axes.set(xlabel="dB (higher is better)", yticks=[], ylim=(len(ranked) - 0.3, -1))
        axes.set_xlim(left, max(values) * 1.15 + 1)
        axes.spines[["top", "right", "left"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = svg.replace("#000000", "currentColor")  # follows the page's light or dark scheme
    return svg.replace("<svg ", '<svg role="img" aria-label="SQNR by tensor" ', 1)


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.2f} MB"


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def plain(value: Any) -> str:
    """A value of a free table as a reader wants it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
