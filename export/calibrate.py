"""The stage of static INT8: ranges, and what keeps outliers out of them in decoder-only models."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgemt.bundle import open_bundle
from edgemt.calibration.cache import CacheRanges, Range
from edgemt.calibration.collect import Sentence, calibration_tensors, collect, decode
from edgemt.calibration.fakequant import Errors, Product, fits_static, product_errors
from edgemt.calibration.quantspec import QuantSpec
from edgemt.calibration.samples import Samples
from edgemt.calibration.smooth import Factors, find_factors, folds, smooth
from edgemt.export.graphs.graphset import Canonical, constant_matmuls
from edgemt.export.rows import Row
from edgemt.export.targets import Calibrated
from edgemt.export.targets.cache8 import to_cache8

SAMPLED = 32  # sentences whose activations are sampled, to find what keeps their outliers away
DECODED = 4  # one sentence in so many is decoded; the answers of the others are read with their prompts


class Found(NamedTuple):
    """What calibration found: for quant.json, for the lowering, what was folded away, and for the report."""

    spec: QuantSpec
    calibrated: Calibrated
    factors: Factors
    report: dict[str, Any]


def calibrate(
    fp32: Path,
    canonical: Canonical,
    rows: list[Row],
    *,
    observer: str,
    threads: int,
    stage: Callable[[str], AbstractContextManager[None]],
) -> Found:
    """Ranges of what enters each matrix product, from decoding `rows` with the bundle `fp32` of `canonical`.

    Of an encoder-decoder model attention's operands, past keys and values among them, are watched too, for
    targets that quantise those. Of a decoder-only model the outliers are folded away first (smooth.py).
    """
    manifest = open_bundle(fp32).manifest
    if "encoder" in manifest.graphs:
        with stage(f"calibrating on {len(rows)} sentences"):
            tensors = calibration_tensors(fp32, manifest, products=True)
            texts = [Sentence(row.source_lang, row.target_lang, row.source) for row in rows]
            spec = collect(fp32, manifest, tensors, texts, observer=observer, threads=threads)
        return Found(spec, Calibrated(spec.activations), {}, {"activations": spec.to_json()["activations"]})
    texts = with_answers(rows, len(manifest.languages))
    tensors = {"step": [fold.tensor for fold in folds(canonical)]}
    with stage(f"looking for outliers in {min(SAMPLED, len(texts))} sentences"):
        samples = Samples()
        decode(fp32, manifest, tensors, texts[:SAMPLED], samples, threads)
        factors = find_factors(canonical, samples.tensors)
    with stage(f"calibrating on {len(texts)} sentences"):
        spec = collect(fp32, manifest, tensors, texts, observer=observer, threads=threads, factors=factors)
        errors = products_errors(canonical, samples, factors, spec)
    spec = dataclasses.replace(spec, schemes=schemes(canonical, errors))
    calibrated = Calibrated(spec.activations, spec.schemes, smooth(canonical, factors))
    report = {"activations": spec.to_json()["activations"], "products": told(spec, errors)}
    return Found(spec, calibrated, factors, report)


def cache_ranges(
    fp32: Path,
    canonical: Canonical,
    rows: list[Row],
    *,
    threads: int,
    stage: Callable[[str], AbstractContextManager[None]],
) -> dict[str, Range]:
    """Of the keys and values that the bundle `fp32` of `canonical` keeps, by the input of their state."""
    manifest, found = open_bundle(fp32).manifest, CacheRanges(canonical)
    texts = with_answers(rows, len(manifest.languages))[:SAMPLED]
    with stage(f"looking at keys and values of {len(texts)} sentences"):
        decode(fp32, manifest, {"step": found.tensors}, texts, found, threads)
    return found.ranges


def with_cache8(
    found: Calibrated, canonical: Canonical, ranges: dict[str, Range], factors: Factors
) -> Calibrated:
    """The same with a cache of 8 bits; `ranges` are from before `factors` were folded away."""
    inside = dict(ranges)
    for i in range(len(canonical.states) // 2):
        name, factor = f"past_value.{i}", factors.get(f"layers.{i}.self_attn.merged")
        if factor is not None:  # the same for all queries of a key
            low, high = ranges[name]
            factor = factor.reshape(len(low), -1, low.shape[1])[:, 0]
            inside[name] = Range(low / factor, high / factor)
    return dataclasses.replace(found, canonical=to_cache8(found.canonical or canonical, inside))


def cache_report(canonical: Canonical) -> dict[str, int]:
    """For the report: bytes that a token takes in a cache of 8 bits, and would in FP32."""
    values = sum(int(np.prod([int(axis) for axis in spec.shape[2:]])) for spec in canonical.states)
    return {"bits": 8, "bytes_a_token": values, "bytes_a_token_fp32": 4 * values}


def with_answers(rows: list[Row], pairs: int) -> list[Sentence]:
    """The rows as sentences of which one in DECODED, of each pair, is to be decoded."""
    return [
        Sentence(*row[:3], row.target if row.target and i // pairs % DECODED else None)
        for i, row in enumerate(rows)
    ]


def products_errors(
    canonical: Canonical, samples: Samples, factors: Factors, spec: QuantSpec
) -> dict[str, Errors]:
    """What 8 bits do to each product that takes a scaled tensor, by its node."""
    nodes = {
        weight: node.name for node, weight in constant_matmuls(canonical.graphs["step"], canonical.weights)
    }
    found = {}
    for fold in folds(canonical):
        product = Product.of(samples.tensors[fold.tensor], np.asarray(canonical.weights[fold.reader]))
        limits = spec.activations[fold.tensor]
        found[nodes[fold.reader]] = product_errors(product.scaled(factors[fold.tensor]), limits)
    return found


def schemes(canonical: Canonical, errors: dict[str, Errors]) -> dict[str, str]:
    """How the products that are not static take their activations.

    The head is in blocks, for the sake of the embedding that shares its table or is as large.
    """
    products = list(constant_matmuls(canonical.graphs["step"], canonical.weights))
    tails = {fold.tensor for fold in folds(canonical) if fold.tails}
    by_rows = {
        node.name: "rows"
        for node, _ in products
        if node.name in errors and (node.input[0] in tails or not fits_static(*errors[node.name]))
    }
    return by_rows | {node.name: "blocks" for node, _ in products if node.name not in errors}


def told(spec: QuantSpec, errors: dict[str, Errors]) -> dict[str, Any]:
    """For the report: how many products are static, and of each that is not why."""
    counts = Counter(spec.schemes.values())
    why = {
        node: f"error {error.static:.2g} of the output's power if static, {error.by_rows:.2g} by rows"
        for node, error in errors.items()
        if node in spec.schemes
    }
    return {"static": len(errors) - counts["rows"], **counts, "not static": why}
