"""The result of a run as one JSON-able dictionary: everything the table and the page show is in it.

docs/bench.md documents every key; `FORMAT_VERSION` follows the rule of the bundle's manifest (a minor version
only adds keys, a change of meaning raises the major version).
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgemt.bench.cold import Start
from edgemt.bench.conditions import compare
from edgemt.bench.measure import SEED, Counts, Samples
from edgemt.bench.stats import F64, LEVEL, percentile, percentile_intervals, ratio_interval
from edgemt.bench.workload import Sentence, Workload, bucket_of
from edgemt.bundle import Bundle

FORMAT = "edgemt-bench"
FORMAT_VERSION = "1.0"
FIGURES = (50.0, 90.0, 99.0)


@dataclass(frozen=True)
class Settings:
    """What the user asked for."""

    budget_ms: float
    percentile: float  # the one that must stay within the budget
    rounds: int
    warmup: int
    threads: int
    beam: int | None  # None: the bundle's own default


@dataclass(frozen=True)
class Contender:
    """One bundle and what was found about it apart from the timed rounds."""

    label: str
    bundle: Bundle
    starts: list[Start]  # fresh processes; the first one translated the whole workload
    counts: Counts


def build(
    settings: Settings,
    workload: Workload,
    contenders: list[Contender],
    samples: Samples,
    machine: dict[str, Any],
    skipped: int,
) -> dict[str, Any]:
    """Put a run together. `skipped` texts were left out because not every bundle has their languages."""
    buckets = [
        s.bucket or bucket_of(n) for s, n in zip(workload.sentences, contenders[0].counts.source, strict=True)
    ]
    bundles = [
        _bundle(settings, workload.sentences, buckets, contender, samples, place)
        for place, contender in enumerate(contenders)
    ]
    over = [
        {"bundle": bundle["label"], "bucket": group["tokens"], "ms": group["budget_percentile"]["ms"]}
        for bundle in bundles
        for group in bundle["buckets"]
        if group["budget_percentile"]["ms"] > settings.budget_ms
    ]
    span = compare(samples.before, samples.after)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": "measured",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {
            **dataclasses.asdict(settings),
            "confidence": LEVEL,
            "seed": SEED,
            "garbage_collector": "off",
        },
        "workload": {
            "name": workload.name,
            "sha256": workload.sha256,
            "texts": len(workload.sentences),
            "skipped": skipped,
            "buckets": sorted(set(buckets)),
        },
        "verdict": {"within_budget": not over, "over": over, "disturbed": span.disturbed},
        "machine": machine,
        "conditions": {
            "before": dataclasses.asdict(samples.before),
            "after": dataclasses.asdict(samples.after),
            "span": dataclasses.asdict(span),
            "timeline": [dataclasses.asdict(moment) for moment in samples.timeline],
        },
        "bundles": bundles,
    }


def _bundle(
    settings: Settings,
    sentences: list[Sentence],
    buckets: list[int],
    contender: Contender,
    samples: Samples,
    place: int,
) -> dict[str, Any]:
    times, base = samples.ms[place], samples.ms[0] if place else None
    targets = np.array(contender.counts.target)
    directions = [f"{s.source_lang or '?'}-{s.target_lang or '?'}" for s in sentences]

    def group(chosen: list[int]) -> dict[str, Any]:
        return _group(settings, times[chosen], None if base is None else base[chosen], targets[chosen])

    def where(values: list[Any], value: Any) -> list[int]:
        return [index for index, other in enumerate(values) if other == value]

    manifest, whole, starts = contender.bundle.manifest, contender.starts[0], contender.starts
    return {
        "label": contender.label,
        "name": manifest.name,
        "target": manifest.target,
        "precision": manifest.precision,
        "digest": manifest.digest,
        "bytes": size_on_disk(contender.bundle),
        "beam": settings.beam or manifest.generation.get("beam", 1),
        "load_s": statistics.median(start.load_s for start in starts),
        "cold_start_s": statistics.median(start.first_s for start in starts),
        "cold_starts": [start._asdict() for start in starts],
        "peak_rss_bytes": whole.peak_rss_bytes,
        "overall": group(list(range(len(sentences)))),
        "buckets": [{"tokens": b, **group(where(buckets, b))} for b in sorted(set(buckets))],
        "directions": [{"pair": d, **group(where(directions, d))} for d in sorted(set(directions))],
        "texts": [
            {
                "line": sentence.number,
                "pair": directions[index],
                "bucket": buckets[index],
                "source_tokens": contender.counts.source[index],
                "target_tokens": contender.counts.target[index],
                "ms": [round(v, 4) for v in times[index].tolist()],
                "at_s": [round(v, 4) for v in samples.at_s[place, index].tolist()],
            }
            for index, sentence in enumerate(sentences)
        ],
    }


def _group(settings: Settings, times: F64, base: F64 | None, targets: Any) -> dict[str, Any]:
    """The figures of some texts: `times` and `base` [texts, rounds] ms, `targets` [texts] tokens."""
    wanted = [*FIGURES, settings.percentile]
    values = [percentile(times, q) for q in wanted]
    intervals = [list(bounds) for bounds in percentile_intervals(times, wanted)]
    tokens = int(targets.sum()) * times.shape[1]
    found = {
        "texts": times.shape[0],
        "timings": times.size,
        **{
            f"p{q:.0f}": {"ms": value, "interval": interval}
            for q, value, interval in zip(FIGURES, values, intervals, strict=False)
        },
        "budget_percentile": {"ms": values[-1], "interval": intervals[-1]},
        "max_ms": float(times.max()),
        "mean_ms": float(times.mean()),
        "target_tokens_per_s": tokens / (times.sum() / 1000),
        "ms_per_target_token": float(times.sum()) / tokens if tokens else None,
    }
    if base is not None:
        ratio, bounds = ratio_interval(times, base)
        found["ratio_to_first"] = {"ratio": ratio, "interval": list(bounds)}
    return found


def size_on_disk(bundle: Bundle) -> int:
    """Bytes of the bundle as it lies there: the zip, or all files of the folder."""
    path: Path = bundle.path
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
