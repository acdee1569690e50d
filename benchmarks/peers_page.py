"""docs/benchmarks.md: what benchmarks/peers.py measured, as a page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgemt.bench.table import interval, ms, summary

RIVAL = "CTranslate2 INT8"
METHOD = Path(__file__).with_name("peers_method.md")


def page(data: dict[str, Any]) -> str:
    first = data["searches"][0]["run"]
    lines = ["# Beside the best: edgemt, CTranslate2, optimum", ""]
    lines += ["Written by `benchmarks/peers.py`; do not edit. The raw times are in `benchmarks.json`.", ""]
    reasons = dict.fromkeys(r for search in data["searches"] for r in search["run"]["verdict"]["disturbed"])
    if reasons:
        lines += [f"> **Disturbed run, do not quote these times**: {'; '.join(reasons)}.", ""]
    lines += [f"    {data['command']}", ""]
    lines += [f"- {key}: {value}" for key, value in summary(first).items()]
    lines += [f"- measured: {first['created']}, {data['minutes']:g} minutes in all", ""]
    lines += [line for search in data["searches"] for line in verdict(search)] + [""]
    lines += [
        f"{s['name']} was left out: no {s['missing']} here (`{s['install']}`).\n" for s in data["skipped"]
    ]
    for search in data["searches"]:
        lines += latency(search)
    lines += resources(data) + quality(data) + versions(data)
    threads = first["settings"]["threads"]
    method = METHOD.read_text(encoding="utf-8")
    return "\n".join([*lines, method.format(threads=threads, most=data["sentence_tokens"])])


def verdict(search: dict[str, Any]) -> list[str]:
    """How the shipped bundle and its strongest rival compare, in a sentence."""
    rows = search["run"]["bundles"]
    rival = next((row for row in rows[1:] if row["label"] == RIVAL), None)
    if rival is None:
        return []
    ratio = rival["overall"]["ratio_to_first"]
    low, high = ratio["interval"]
    who = "edgemt is faster" if low > 1 else "edgemt is slower" if high < 1 else "too close to call"
    return [
        f"**{search['search'].capitalize()}**: {RIVAL} takes {times(ratio)} times as long as "
        f"{rows[0]['label']} over all texts; {who}.\n"
    ]


def latency(search: dict[str, Any]) -> list[str]:
    rows = search["run"]["bundles"]
    lengths = [f"{bucket['tokens']} tokens" for bucket in rows[0]["buckets"]]
    found = [f"## {search['search'].capitalize()}: milliseconds a text, by length of the source", ""]
    for name in ("p50", "p99"):
        cells = [
            [
                row["label"],
                *(f"{ms(b[name]['ms'])} ({interval(b[name])})" for b in [*row["buckets"], row["overall"]]),
            ]
            for row in rows
        ]
        found += [*table([f"{name} (95 %)", *lengths, "all"], cells), ""]
    cells = [
        [row["label"], *(times(b["ratio_to_first"]) for b in [*row["buckets"], row["overall"]])]
        for row in rows[1:]
    ]
    head = [f"× {rows[0]['label']} (95 %)", *lengths, "all"]
    return [*found, *(table(head, cells) if cells else []), ""]


def resources(data: dict[str, Any]) -> list[str]:
    head = ["", "model", "packages", "cold start, median (range)"]
    head += [f"peak RSS, {search['search']}" for search in data["searches"]]
    head += [f"CPU a test row, {search['search']}" for search in data["searches"]]
    cells = []
    for place, contender in enumerate(data["contenders"]):
        runs = [search["run"]["bundles"][place] for search in data["searches"]]
        starts = [start["first_s"] for start in runs[0]["cold_starts"]]
        cells.append(
            [
                contender["label"],
                f"{contender['model_bytes'] / 1e6:.1f} MB",
                f"{contender['packages_bytes'] / 1e6:.0f} MB",
                f"{statistics.median(starts):.2f} s ({min(starts):.2f}–{max(starts):.2f})",
                *(megabytes(run["peak_rss_bytes"]) for run in runs),
                *(f"{ms(search['quality'][place]['cpu_ms'])} ms" for search in data["searches"]),
            ]
        )
    return ["## Memory, size, start", "", *table(head, cells), ""]


def quality(data: dict[str, Any]) -> list[str]:
    texts = data["searches"][0]["quality"][0]["texts"]
    found = [
        "## Quality",
        "",
        f"{texts} test rows of the open clinical corpus, both directions together.",
        "",
    ]
    directions = list(data["searches"][0]["quality"][0]["directions"])
    head = [f"{d.replace('-', '→')} {score}" for d in directions for score in ("BLEU", "chrF")]
    for search in data["searches"]:
        cells = []
        for row in search["quality"]:
            scores = [f"{row['directions'][d][name]:.2f}" for d in directions for name in ("bleu", "chrf")]
            same = row["same_as_fp32"]
            cells.append([row["label"], *scores, "–" if same is None else f"{same:.1%}"])
        found += [*table([search["search"], *head, "as FP32"], cells), ""]
    return found


def versions(data: dict[str, Any]) -> list[str]:
    known: dict[str, str] = {}
    for contender in data["contenders"]:
        known |= contender["versions"]
    return [f"Versions: {', '.join(f'{name} {version}' for name, version in sorted(known.items()))}.", ""]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def times(ratio: dict[str, Any]) -> str:
    low, high = ratio["interval"]
    return f"{ratio['ratio']:.2f} ({low:.2f}–{high:.2f})"


def megabytes(count: int | None) -> str:
    return "not told here" if count is None else f"{count / 1e6:.0f} MB"
