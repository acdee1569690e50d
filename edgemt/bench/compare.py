"""`edgemt bench --compare`: what differs between runs, from the files of `edgemt bench --json`.

The texts of two runs are paired by the workload's digest and their line in it; nothing is measured here.
`docs/bench.md` tells how to read the result and documents its JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgemt.bench.between import RUN_DF, RUN_SD, Ratio, ratios, spread
from edgemt.bench.compare_table import render
from edgemt.bench.options import check_report_packages, check_writable, write
from edgemt.bench.runs import Run, Side, differences, read_run, same_workload
from edgemt.bench.stats import F64, LEVEL, RESAMPLES, SEED
from edgemt.errors import UsageError

FORMAT = "edgemt-bench-comparison"
FORMAT_VERSION = "1.0"


def compare(sides: list[list[Path]], max_slowdown: float | None = None) -> dict[str, Any]:
    """Compare each side with the first one; a side is the files of one or more runs of the same thing.

    The result is one JSON-able dictionary. Raises UsageError if there are fewer than two sides, a file is no
    measurement of a version read here, or the runs are of different workloads.
    """
    paths = [path for side in sides for path in side]
    if len(sides) < 2:
        raise UsageError(
            f"--compare was given {len(paths)} file{'s' * (len(paths) > 1)} of one side; name two or more, "
            "or repeat --compare for each side"
        )
    twice = {path for path in paths if [other.resolve() for other in paths].count(path.resolve()) > 1}
    if twice:
        raise UsageError(f"--compare names {min(twice)} twice; a run differs from itself in nothing")
    alike = len({path.name for path in paths}) < len(paths)
    read = [
        Side(chr(ord("A") + number), [Run(str(p) if alike else p.name, read_run(p)) for p in side])
        for number, side in enumerate(sides)
    ]
    same_workload([run for side in read for run in side.runs])
    pairs, left_out = [], []
    for side in read[1:]:
        found, missing = _pairs(read[0], side, max_slowdown)
        pairs += found
        left_out += missing
    workload = read[0].runs[0].data["workload"]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": "comparison",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {
            "max_slowdown_percent": max_slowdown,
            "confidence": LEVEL,
            "resamples": RESAMPLES,
            "seed": SEED,
            "assumed_run_sd_percent": 100 * RUN_SD,
            "assumed_run_df": RUN_DF,
        },
        "workload": {key: workload[key] for key in ("name", "sha256")},
        "sides": [_side(side) for side in read],
        "differences": differences(read),
        "left_out": left_out,
        "pairs": pairs,
        "slowdown": any(pair["too_slow"] for pair in pairs),
        "disturbed": any(run.data["verdict"]["disturbed"] for side in read for run in side.runs),
    }


def _pairs(
    base: Side, other: Side, max_slowdown: float | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the same label; a single row on both sides is a pair whatever it is called."""
    ours, theirs = _common(base.runs), _common(other.runs)
    if len(ours) == len(theirs) == 1:
        labels = [(ours[0], theirs[0])]
    else:
        labels = [(label, label) for label in ours if label in theirs]
    if not labels:
        raise UsageError(
            f"no row of {base.name} ({', '.join(ours)}) is in {other.name} ({', '.join(theirs)}); "
            "compare runs of the same bundles, or one row each"
        )
    paired = {label for pair in labels for label in pair}
    left_out = [
        {"side": side.letter, "label": label}
        for side in (base, other)
        for label in dict.fromkeys(label for run in side.runs for label in run.rows())
        if label not in paired
    ]
    return [_pair(base, other, *pair, max_slowdown) for pair in labels], left_out


def _common(runs: list[Run]) -> list[str]:
    """Labels of the rows that every run of a side has."""
    labels = [label for label in runs[0].rows() if all(label in run.rows() for run in runs)]
    if not labels:
        raise UsageError(
            f"{runs[0].name} and the other runs of its side have no row in common; pair other runs"
        )
    return labels


def _pair(
    base: Side, other: Side, base_label: str, other_label: str, max_slowdown: float | None
) -> dict[str, Any]:
    rows = [[run.rows()[base_label] for run in base.runs], [run.rows()[other_label] for run in other.runs]]
    texts = [{text["line"]: text for text in row["texts"]} for side in rows for row in side]
    lines = [line for line in texts[0] if all(line in found for found in texts)]
    if not lines:
        raise UsageError(
            f"{base.name} and {other.name} have no text in common; compare runs of the same texts"
        )
    ours, theirs = ([_times(row, lines) for row in side] for side in rows)
    buckets = [texts[0][line]["bucket"] for line in lines]
    groups = [list(range(len(lines)))]
    groups += [[i for i, b in enumerate(buckets) if b == bucket] for bucket in sorted(set(buckets))]
    figures = [
        {
            "texts": len(group),
            "base_ms": _typical(ours, group),
            "other_ms": _typical(theirs, group),
            "ratio": ratio.ratio,
            "interval": [ratio.low, ratio.high],
        }
        for group, ratio in zip(groups, ratios(ours, theirs, groups), strict=True)
    ]
    between = spread([ours, theirs])
    disturbed = [run.name for side in (base, other) for run in side.runs if run.data["verdict"]["disturbed"]]
    overall = Ratio(figures[0]["ratio"], *figures[0]["interval"])
    verdict = "disturbed" if disturbed else _verdict(overall)
    tokens = [sum(found[line].get("target_tokens") or 0 for line in lines) for found in (texts[0], texts[-1])]
    return {
        "base": {"side": base.letter, "name": base.name, "label": base_label, "runs": len(ours)},
        "other": {"side": other.letter, "name": other.name, "label": other_label, "runs": len(theirs)},
        "texts": len(lines),
        "texts_left_out": max(len(found) for found in texts) - len(lines),
        "rounds": [[run.shape[1] for run in side] for side in (ours, theirs)],
        "between_runs": {
            "sd_percent": 100 * between.sd,
            "df": between.df,
            "df_from_runs": between.from_runs,
            "drift": between.drift,
        },
        "target_tokens": tokens,
        "overall": figures[0],
        "buckets": [
            {"tokens": bucket, **figure}
            for bucket, figure in zip(sorted(set(buckets)), figures[1:], strict=True)
        ],
        "verdict": verdict,
        "disturbed": disturbed,
        "too_slow": verdict == "slower"
        and max_slowdown is not None
        and 100 * (overall.ratio - 1) > max_slowdown,
    }


def _times(row: dict[str, Any], lines: list[int]) -> F64:
    """[texts, rounds] milliseconds; rounds that not every text has (a run that was stopped) are left out."""
    by_line = {text["line"]: text["ms"] for text in row["texts"]}
    rounds = min(len(by_line[line]) for line in lines)
    return np.array([by_line[line][:rounds] for line in lines], dtype=np.float64)


def _typical(runs: Sequence[F64], group: list[int]) -> float:
    """Geometric mean over texts and runs of the texts' medians, in ms: the ratio is the quotient of two."""
    return float(np.exp(np.mean([np.log(np.median(run[group], axis=1)).mean() for run in runs])))


def _verdict(ratio: Ratio) -> str:
    return "slower" if ratio.low > 1 else "faster" if ratio.high < 1 else "no difference shown"


def _side(side: Side) -> dict[str, Any]:
    return {
        "letter": side.letter,
        "name": side.name,
        "runs": [
            {
                "file": Path(run.name).name,
                "created": run.data.get("created"),
                "disturbed": run.data["verdict"]["disturbed"],
            }
            for run in side.runs
        ],
    }


def run(
    sides: list[list[Path]],
    *,
    json_path: Path | None = None,
    report: Path | None = None,
    max_slowdown: float | None = None,
    strict: bool = False,
) -> int:
    """Compare and show; the exit code: 1 if a side is slower by more than `max_slowdown` per cent, 3 if a run
    was disturbed and `strict` is asked for, else 0. Files are written before that is decided."""
    for path, option in ((json_path, "--json"), (report, "--report")):
        check_writable(path, option)
    if report:
        check_report_packages()
    data = compare(sides, max_slowdown)
    print(render(data))
    if json_path:
        write(json_path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    if report:
        from edgemt.bench.compare_page import page

        write(report, page(data))
    return 3 if strict and data["disturbed"] else 1 if data["slowdown"] else 0
