"""`edgemt bench --project pi5`: what a device would take, computed from counted instructions and bytes read.

A projection is a range of milliseconds and no measurement: it is labelled so wherever it is shown, is written
in a format of its own, and passes or fails nothing unless that is asked for. Method: docs/projection.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgemt.bench import device_model as model
from edgemt.bench.contenders import BundleContender, Mode, bundle_labels
from edgemt.bench.device_model import DATA, Device, Draws, Product
from edgemt.bench.options import check_writable, write
from edgemt.bench.prepare import own_mode, speakable
from edgemt.bench.project_table import render
from edgemt.bench.stats import F64
from edgemt.bench.workload import Sentence, Workload, bucket_of
from edgemt.bundle import Bundle
from edgemt.errors import UsageError
from edgemt.manifest import Manifest
from edgemt.translator import Translator

FORMAT = "edgemt-projection"
FORMAT_VERSION = "1.0"
INSTRUCTIONS = DATA / "instructions.json"
COUNTS_FORMAT, COUNTS_MAJOR = "edgemt-instructions", "1"
PREFIX = 2  # source rows beside the tokens: the direction before them, the end after them
DRAWS = 400
TIMINGS = 5  # of each text, as in a run of five rounds
FIGURES = (50.0, 90.0, 99.0)
SIZES = {"int8": 1, "float32": 4, "fp32": 4, "float16": 2, "fp16": 2, "int4": 0.5}  # bytes of a weight


@dataclass(frozen=True)
class Passes:
    """What a text makes the model do: source and target tokens of each of its sentences."""

    source: list[int]
    target: list[int]


@dataclass(frozen=True)
class Settings:
    threads: int
    percentile: float
    budget_ms: float | None  # None: nothing is judged


def run(
    device_name: str,
    bundles: Sequence[Bundle],
    workload: Workload,
    settings: Settings,
    *,
    modes: Sequence[Mode] = (),
    json_path: Path | None = None,
    counts: Path = INSTRUCTIONS,
) -> int:
    """Project and show. The exit code: 1 if a budget is judged and the slow end of a range is over it."""
    check_writable(json_path, "--json")
    device = model.read_device(device_name)
    if settings.threads > device.cores:
        raise UsageError(f"--threads is {settings.threads}, and a {device.name} has {device.cores} cores")
    data = project(device, bundles, workload, settings, modes, counts)
    print(render(data))
    if json_path:
        write(json_path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    return 1 if data["verdict"] and not data["verdict"]["within_budget"] else 0


def project(
    device: Device,
    bundles: Sequence[Bundle],
    workload: Workload,
    settings: Settings,
    modes: Sequence[Mode] = (),
    counts: Path = INSTRUCTIONS,
) -> dict[str, Any]:
    """The projection as one JSON-able dictionary. Raises UsageError for a bundle that was never counted."""
    pairs = [(bundle, mode) for bundle in bundles for mode in modes or [own_mode(bundle)]]
    found = [counted(bundle, mode, counts) for bundle, mode in pairs]
    workload, skipped = speakable(workload, bundles)
    labels = bundle_labels([b for b, _ in pairs], [m if modes else None for _, m in pairs])
    draws = model.draw(device, DRAWS)
    rows = [
        _row(draws, label, bundle, mode, entry, workload.sentences, settings)
        for label, (bundle, mode), entry in zip(labels, pairs, found, strict=True)
    ]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": "projected",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": {"name": device.name, "parameters": device.parameters},
        "settings": {
            "threads": settings.threads,
            "percentile": settings.percentile,
            "budget_ms": settings.budget_ms,
            "draws": DRAWS,
            "range_percent": list(model.RANGE),
            "seed": model.SEED,
        },
        "workload": {
            "name": workload.name,
            "sha256": workload.sha256,
            "texts": len(workload.sentences),
            "skipped": skipped,
        },
        "verdict": _verdict(rows, settings.budget_ms),
        "bundles": rows,
    }


def counted(bundle: Bundle, mode: Mode, path: Path = INSTRUCTIONS) -> dict[str, Any]:
    """The entry of the instruction counts that belongs to a bundle's digest and beam width.

    Raises UsageError, with the command that counts, where there is none, and for a file that holds no counts.
    """
    manifest = bundle.manifest
    beam = mode.beam or manifest.generation.get("beam", 1)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = data["bundles"] if data["format"] == COUNTS_FORMAT else None
        version = str(data["format_version"])
    except FileNotFoundError:
        entries, version = [], COUNTS_MAJOR
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the instruction counts {path} are damaged ({error}); count again") from None
    if entries is None or version.split(".")[0] != COUNTS_MAJOR:
        raise UsageError(f"{path} holds no instruction counts of format {COUNTS_MAJOR}; count again")
    for entry in entries:
        if entry["digest"] == manifest.digest and entry["beam"] == beam and not mode.glossary:
            return entry
    raise UsageError(
        f"there are no instruction counts of {manifest.name} {manifest.precision} "
        f"({mode.name}, digest {manifest.digest[:12]}…); in a checkout, count them with "
        f"python -m tests.device.count {bundle.path} --beam {beam} --write (docs/emulated.md)"
    )


def products(manifest: Manifest) -> tuple[list[Product], list[Product]]:
    """The matrix products with weights: of the encoder, and of a decoding step.

    Raises UsageError for a bundle without steps, whose way of working is not modelled here.
    """
    found: dict[str, list[Product]] = {"encoder": [], "step": []}
    for layer in manifest.layers:
        if layer["op"].startswith("MatMul") and layer["graph"] in found:
            size = SIZES.get(layer["precision"], 1)
            found[layer["graph"]].append(Product(round(layer["bytes"] / size), layer["bytes"]))
    if manifest.family != "seq2seq" or not found["step"]:
        raise UsageError(
            f"{manifest.name} ({manifest.family}) has no decoding step to project; measure it on the device"
        )
    return found["encoder"], found["step"]


def cache_bytes(manifest: Manifest, source: int, target: int) -> float:
    """Bytes of keys and values that all steps of a sentence read."""
    total = 0.0
    for state in manifest.states:
        floats = math.prod(size for size in state.shape if isinstance(size, int))
        total += 4 * floats * target * (source if state.update == "constant" else (target + 1) / 2)
    return total


def seconds(
    draws: Draws, manifest: Manifest, entry: dict[str, Any], texts: Sequence[Passes], threads: int
) -> F64:
    """[draws, texts] seconds of a warm translation of each text."""
    encoder, step = products(manifest)
    fit, beam = entry["fit"], entry["beam"]
    kept = model.kept_share(draws, sum(product.bytes for product in step), threads)
    step_s = model.products_s(draws, step, beam, threads, kept)
    in_step = model.instructions(draws, step, beam)
    encoded: dict[int, tuple[F64, F64]] = {}
    found = np.empty((draws.count, len(texts)))
    for place, text in enumerate(texts):
        total = (
            fit["base"]
            + fit["per_source_token"] * sum(text.source)
            + fit["per_target_token"] * sum(text.target)
        )
        taken, inner = np.zeros(draws.count), np.zeros(draws.count)
        for source, target in zip(text.source, text.target, strict=True):
            rows, steps = source + PREFIX, target + 1
            if rows not in encoded:
                encoded[rows] = (
                    model.products_s(draws, encoder, rows, threads),
                    model.instructions(draws, encoder, rows),
                )
            taken += encoded[rows][0] + steps * step_s
            taken += beam * cache_bytes(manifest, rows, steps) / (draws["l3_gb_s"] * 1e9)
            inner += encoded[rows][1] + steps * in_step
        found[:, place] = taken + model.serial_s(draws, np.maximum(total - inner, 0.0))
    return found


def _row(
    draws: Draws,
    label: str,
    bundle: Bundle,
    mode: Mode,
    entry: dict[str, Any],
    sentences: Sequence[Sentence],
    settings: Settings,
) -> dict[str, Any]:
    manifest = bundle.manifest
    contender = BundleContender(label, Translator(bundle, threads=1), mode)
    texts = [_passes(contender, sentence) for sentence in sentences]
    buckets = [s.bucket or bucket_of(sum(t.source)) for s, t in zip(sentences, texts, strict=True)]
    times = 1000 * seconds(draws, manifest, entry, texts, settings.threads)
    noise = np.random.default_rng(model.SEED).normal(size=(draws.count, len(texts), TIMINGS))
    times = times[:, :, None] * np.exp(draws["jitter"][:, None, None] * noise)

    def group(chosen: list[int]) -> dict[str, Any]:
        wanted = [*FIGURES, settings.percentile]
        drawn = times[:, chosen].reshape(draws.count, -1)
        values = np.percentile(drawn, wanted, axis=1, method="inverted_cdf")
        figures = [dict(zip(("low", "middle", "high"), model.bounds(v), strict=True)) for v in values]
        return {
            "texts": len(chosen),
            "source_tokens": float(np.mean([sum(texts[i].source) for i in chosen])),
            "target_tokens": float(np.mean([sum(texts[i].target) for i in chosen])),
            **{f"p{q:.0f}": figure for q, figure in zip(FIGURES, figures, strict=False)},
            "budget_percentile": figures[-1],
        }

    encoder, step = products(manifest)
    return {
        "label": label,
        "name": manifest.name,
        "precision": manifest.precision,
        "digest": manifest.digest,
        "beam": entry["beam"],
        "bytes_read": {
            "encoder": sum(product.bytes for product in encoder),
            "step": sum(product.bytes for product in step),
        },
        "instructions": entry["fit"],
        "overall": group(list(range(len(texts)))),
        "buckets": [
            {"tokens": bucket, **group([i for i, b in enumerate(buckets) if b == bucket])}
            for bucket in sorted(set(buckets))
        ],
    }


def _passes(contender: BundleContender, sentence: Sentence) -> Passes:
    segments = [segment for segment in contender.segments(sentence) if segment.translated]
    return Passes([s.source_tokens for s in segments], [s.target_tokens for s in segments])


def _verdict(rows: list[dict[str, Any]], budget_ms: float | None) -> dict[str, Any] | None:
    """None unless a budget is to be judged; within it only if the slow end of each range is."""
    if budget_ms is None:
        return None
    over = [
        {"bundle": row["label"], "bucket": bucket["tokens"], **bucket["budget_percentile"]}
        for row in rows
        for bucket in row["buckets"]
        if bucket["budget_percentile"]["high"] > budget_ms
    ]
    return {"kind": "projected", "within_budget": not over, "over": over}
