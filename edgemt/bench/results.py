"""The result of a run as one JSON-able dictionary: everything the table and the page show is in it.

docs/bench.md documents every key; `FORMAT_VERSION` follows the rule of the bundle's manifest (a minor version
only adds keys, a change of meaning raises the major version).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgemt.bench.arrivals import Arrivals, queueing
from edgemt.bench.cold import Start
from edgemt.bench.conditions import compare
from edgemt.bench.contenders import Mode
from edgemt.bench.drift import drift
from edgemt.bench.energy import energy
from edgemt.bench.measure import SEED, Samples
from edgemt.bench.stages import Stages, summary
from edgemt.bench.stats import F64, LEVEL, percentile, percentile_intervals, ratio_interval
from edgemt.bench.workload import Sentence, Workload, bucket_of, estimated_tokens
from edgemt.bundle import Bundle

FORMAT = "edgemt-bench"
FORMAT_VERSION = "1.1"
FIGURES = (50.0, 90.0, 99.0)


@dataclass(frozen=True)
class Settings:
    """What the user asked for."""

    budget_ms: float
    percentile: float  # the one that must stay within the budget
    rounds: int
    warmup: int
    threads: int
    beam: int | None = None  # as given with --beam
    threads_tried: Sequence[dict[str, Any]] = ()  # with --threads auto: what was measured
    arrivals: Arrivals | None = None  # an open loop
    soak_minutes: float | None = None


@dataclass(frozen=True)
class Counts:
    """Tokens of each sentence as one bundle counts them; lists of length [sentences]."""

    source: list[int]
    target: list[int]


@dataclass(frozen=True)
class Row:
    """One contender and what was found about it apart from the timed rounds."""

    label: str
    kind: Literal["bundle", "command"]
    starts: list[Start]  # fresh processes; the first one translated the whole workload
    mode: Mode | None = None  # of a bundle
    bundle: Bundle | None = None
    counts: Counts | None = None  # of a bundle
    stages: Stages | None = None  # of a bundle


def build(
    settings: Settings,
    workload: Workload,
    rows: list[Row],
    samples: Samples,
    machine: dict[str, Any],
    skipped: int,
) -> dict[str, Any]:
    """Put a run together. `skipped` texts were left out because not every bundle has their languages."""
    counted = next((row.counts.source for row in rows if row.counts), None)
    sources = counted or [estimated_tokens(s.source) for s in workload.sentences]
    buckets = [s.bucket or bucket_of(n) for s, n in zip(workload.sentences, sources, strict=True)]
    bundles = [
        _row(settings, workload.sentences, buckets, counted, row, samples, place)
        for place, row in enumerate(rows)
    ]
    single = settings.threads == 1 and all(row.kind == "bundle" for row in rows)
    timeline = [moment for moment in samples.timeline if moment.at_s >= 0]
    over = [
        {"bundle": bundle["label"], "bucket": group["tokens"], "ms": group["budget_percentile"]["ms"]}
        for bundle in bundles
        for group in bundle["buckets"]
        if group["budget_percentile"]["ms"] > settings.budget_ms
    ]
    span = compare(samples.before, samples.after, during=timeline, single=single)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": "measured",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {
            "budget_ms": settings.budget_ms,
            "percentile": settings.percentile,
            "rounds": samples.ms.shape[2],
            "warmup": settings.warmup,
            "threads": settings.threads,
            "threads_tried": list(settings.threads_tried),
            "beam": settings.beam,
            "confidence": LEVEL,
            "seed": SEED,
            "garbage_collector": "off",
        },
        "load": {
            "kind": "open" if settings.arrivals else "soak" if settings.soak_minutes else "closed",
            "rate_per_s": settings.arrivals.rate if settings.arrivals else None,
            "arrivals": settings.arrivals.kind if settings.arrivals else None,
            "soak_minutes": settings.soak_minutes,
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
            "timeline": [dataclasses.asdict(moment) for moment in timeline],
        },
        "bundles": bundles,
    }


def _row(
    settings: Settings,
    sentences: list[Sentence],
    buckets: list[int],
    sources: list[int] | None,
    row: Row,
    samples: Samples,
    place: int,
) -> dict[str, Any]:
    """One row. `sources`: tokens of the texts by the first bundle, which stand in for those of a command."""
    times, base = samples.ms[place], samples.ms[0] if place else None
    targets = np.array(row.counts.target) if row.counts else None
    source_tokens = row.counts.source if row.counts else sources
    directions = [f"{s.source_lang or '?'}-{s.target_lang or '?'}" for s in sentences]

    def group(chosen: list[int]) -> dict[str, Any]:
        found = _group(
            settings,
            times[chosen],
            samples.wait_ms[place][chosen],
            None if base is None else base[chosen],
            None if targets is None else targets[chosen],
        )
        known = row.stages and row.counts and summary(row.stages, chosen, row.counts.target)
        return {**found, "stages": known}

    def where(values: list[Any], value: Any) -> list[int]:
        return [index for index, other in enumerate(values) if other == value]

    manifest = row.bundle.manifest if row.bundle else None
    minor, major = samples.faults[place].tolist()
    return {
        "label": row.label,
        "kind": row.kind,
        "mode": row.mode.name if row.mode else None,
        "name": manifest.name if manifest else None,
        "target": manifest.target if manifest else None,
        "precision": manifest.precision if manifest else None,
        "digest": manifest.digest if manifest else None,
        "bytes": size_on_disk(row.bundle) if row.bundle else None,
        "beam": (row.mode and row.mode.beam) or (manifest.generation.get("beam", 1) if manifest else None),
        "texts_with_terms": sum(bool(s.terms) for s in sentences) if row.mode and row.mode.glossary else 0,
        "load_s": _median(start.load_s for start in row.starts),
        "cold_start_s": _median(start.first_s for start in row.starts),
        "cold_starts": [start._asdict() for start in row.starts],
        "peak_rss_bytes": row.starts[0].peak_rss_bytes,
        "page_faults": {"minor": minor, "major": major},
        "energy": None if settings.arrivals else energy(samples, place),
        "open": settings.arrivals
        and queueing(settings.arrivals, times, samples.wait_ms[place], samples.at_s[place]),
        "drift": drift(times, samples.at_s[place], samples.timeline) if settings.soak_minutes else None,
        "overall": group(list(range(len(sentences)))),
        "buckets": [{"tokens": b, **group(where(buckets, b))} for b in sorted(set(buckets))],
        "directions": [{"pair": d, **group(where(directions, d))} for d in sorted(set(directions))],
        "texts": [
            {
                "line": sentence.number,
                "pair": directions[index],
                "bucket": buckets[index],
                "source_tokens": source_tokens[index] if source_tokens else None,
                "target_tokens": row.counts.target[index] if row.counts else None,
                "ms": [round(v, 4) for v in times[index].tolist()],
                "at_s": [round(v, 4) for v in samples.at_s[place, index].tolist()],
                **({"wait_ms": samples.wait_ms[place, index].round(4).tolist()} if settings.arrivals else {}),
                "stages_ms": row.stages and row.stages.medians(index),
            }
            for index, sentence in enumerate(sentences)
        ],
    }


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _group(
    settings: Settings, times: F64, waits: F64, base: F64 | None, targets: NDArray[Any] | None
) -> dict[str, Any]:
    """The figures of some texts: `times`, of which `waits`, and `base` [texts, rounds] ms; `targets` [texts]
    tokens if known."""
    wanted = [*FIGURES, settings.percentile]
    values = [percentile(times, q) for q in wanted]
    intervals = [list(bounds) for bounds in percentile_intervals(times, wanted)]
    tokens = None if targets is None else int(targets.sum()) * times.shape[1]
    busy_ms = float((times - waits).sum())
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
        "target_tokens_per_s": None if tokens is None else tokens / busy_ms * 1000,
        "ms_per_target_token": busy_ms / tokens if tokens else None,
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
