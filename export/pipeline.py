"""From a checkpoint to a bundle: read, build, compare with torch, calibrate, lower, gate, clock, seal."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgemt.bench.facts import machine_facts
from edgemt.bundle import open_bundle, seal
from edgemt.calibration.quantspec import QuantSpec
from edgemt.export import against_torch, cloud, memory
from edgemt.export import rows as tables
from edgemt.export.calibrate import cache_ranges, cache_report, calibrate, with_cache8
from edgemt.export.checkpoints.read import Checkpoint, open_checkpoint
from edgemt.export.families import check_architecture, family_of
from edgemt.export.parity import STEPS
from edgemt.export.report import write_report
from edgemt.export.rounding import round_weights
from edgemt.export.rows import Row
from edgemt.export.run import KV8, Export, Request, Sentences, Stages
from edgemt.export.select import select
from edgemt.export.targets import PLAIN, check_target, target
from edgemt.export.workspace import ARCHIVE, check_output, publish, workspace

GATED = ("int8", "int4")  # precisions that are shipped only if held-out sentences say so


def export(request: Request) -> dict[str, Any]:
    """Run all stages and put the bundle under its final name. Returns the report.

    Raises EdgemtError or UsageError, and leaves nothing behind, if anything is wrong.
    """
    check_output(request.output, request.force)
    stage = Stages()
    with stage("reading the checkpoint"):
        checkpoint = open_checkpoint(request.checkpoint, request.config_from, request.base)
        candidates, lowering = request.candidates(family_of(checkpoint)), target(request.target)
        check_target(request.target, family_of(checkpoint).NAME, request.precision)
        family = check_architecture(checkpoint)
        pairs, prefixes = family.languages(checkpoint, request.languages)
        gated, static = request.gate and bool(candidates), "int8-static" in candidates
        rounds = request.precision in GATED or request.kv == "int8"
        held = Sentences("heldout", request.heldout, "the quality gate", gated and rounds)
        heldout = held.rows(checkpoint, pairs)
        watched = static or request.kv == "int8"
        seen = Sentences("calibration", request.calibration, "the calibration", watched)
        calibration = seen.rows(checkpoint, pairs)
        plain = [name.removesuffix(KV8) for name in candidates]
        halves = request.target == "cloud" and gated
        plan = make_plan(request, checkpoint, plain, watched, gated and (halves or bool(heldout)))
        print(f"edgemt export: licence: {checkpoint.licence_told}", file=sys.stderr)
        checkpoint.check()
        if (masters := str(checkpoint.amp.get("masters"))).startswith("none"):
            print(f"edgemt export: warning: FP32 masters of {checkpoint.form}: {masters}", file=sys.stderr)
    with stage("building the canonical graphs"):
        canonical = family.build(checkpoint, prefixes)
    name = request.name or request.output.stem
    report: dict[str, Any] = {
        "name": name,
        "command": request.command,
        "stages": stage.done,
        "needs": plan.to_json(),
    }
    with workspace(request.output) as work:
        run = Export(request, work, checkpoint, candidates, canonical, pairs, plan, lowering, stage, report)
        found: dict[str, Path] = {}
        if plan.whole:
            with stage("lowering to fp32"):
                found["fp32"] = run.write("fp32")
        compare_with_torch(run, found.get("fp32"), heldout)
        memory.release()
        spec, factors = None, {}
        seen_rows = tables.interleaved(
            calibration, request.calibration_sentences or family.CALIBRATION_SENTENCES
        )
        if static:
            spec, run.found["int8-static"], factors, told = calibrate(
                found["fp32"],
                canonical,
                seen_rows,
                observer=request.observer or family.OBSERVER,
                threads=request.threads,
                stage=stage,
            )
            report |= told
        if "int4" in candidates:
            run.found["int4"] = round_weights(run, calibration)
        if request.kv == "int8":
            ranges = cache_ranges(found["fp32"], canonical, seen_rows, threads=request.threads, stage=stage)
            for name in candidates:
                run.found[name] = with_cache8(run.found.get(name, PLAIN), canonical, ranges, factors)
            report["cache"] = cache_report(canonical)
        for precision in candidates:
            with stage(f"lowering to {precision}"):
                found[precision] = run.write(precision, spec if precision == "int8-static" else None)
        if halves:
            check_halves(run, found["fp32"], found["fp16"], heldout)
        chosen = select(run, found, heldout if gated else [], spec)
        finish(run, found[chosen], spec)
        publish(found[chosen], request.output)
    return report


def some_rows(run: Export, rows: list[Row]) -> list[Row]:
    """The sentences for comparisons of logits."""
    rows = rows or against_torch.plain_rows(run.pairs)
    return tables.interleaved(rows, against_torch.sentences(memory.sizes(run.checkpoint)))


def check_halves(run: Export, fp32: Path, fp16: Path, rows: list[Row]) -> None:
    """FP16's logits beside FP32's, printed."""
    with run.stage("comparing FP16 with FP32"):
        found = cloud.check(fp32, fp16, some_rows(run, rows))
    print(found, file=sys.stderr)
    run.report["half"] = found.to_json()


def compare_with_torch(run: Export, fp32: Path | None, rows: list[Row]) -> None:
    """Parity of the FP32 graphs, printed. `fp32` is their bundle, if there is memory for the whole model."""
    rows = some_rows(run, rows)
    with run.stage("comparing with torch"):
        parity = against_torch.compare(
            run.checkpoint, run.plan.parts, rows, fp32, lambda part: run.write("fp32", canonical=part)
        )
    print(parity, file=sys.stderr)
    run.report["parity"] = parity.to_json()


def make_plan(
    request: Request, checkpoint: Checkpoint, candidates: Sequence[str], calibrates: bool, gated: bool
) -> memory.Plan:
    """How the export goes about it here. Raises EdgemtError if memory or disk are too small for it."""
    found = memory.sizes(checkpoint)
    plan = memory.plan(
        found,
        candidates,
        against_torch.sentences(found) * STEPS,
        calibrates=calibrates,
        gated=gated,
        available=memory.available(),
    )
    packed = max(map(found.bytes, candidates or ["fp32"])) if request.output.suffix == ARCHIVE else 0
    memory.check_disk(request.output, plan.disk + packed)
    return plan


def finish(run: Export, directory: Path, spec: QuantSpec | None) -> None:
    """Write the report into the bundle, and seal it with the gate's result and the calibration's origin."""
    bundle, report, checkpoint = open_bundle(directory), run.report, run.checkpoint
    parameters = sum(int(weight.size) for weight in run.canonical.weights.values())
    report["created"] = bundle.manifest.provenance["date"]
    report["source"] = {
        "checkpoint": checkpoint.name,
        "sha256": checkpoint.sha256,
        "form": checkpoint.form,
        "architecture": checkpoint.architecture,
        "parameters": parameters,
        "languages": ", ".join(map("-".join, run.pairs)),
        "licence": checkpoint.licence,
        "training": checkpoint.training(),
    }
    report["machine"] = machine_facts(run.request.threads)
    report["provenance"] = bundle.manifest.provenance["tools"]
    provenance = dict(bundle.manifest.provenance)
    if spec is not None:
        report["calibration"] = calibration = {
            "observer": spec.observer,
            "sentences": spec.sentences,
            "steps": spec.steps,
            "tensors": len(spec.activations),
            "sentences_sha256": spec.sentences_sha256,
        }
        provenance["calibration"] = calibration
    if "rounding" in report:
        provenance["rounding"] = without(report["rounding"], {"products"})
    summary = {
        key: report[key] for key in ("passed", "choice", "parity", "half", "variants") if key in report
    }
    summary["quality"] = "compared" if any(v["gate"] for v in report["variants"].values()) else "not run"
    write_report(directory, report)
    seal(
        directory,
        dataclasses.replace(
            bundle.manifest, provenance=provenance, gate=without(summary, {"critical", "repaired"})
        ),
    )


def without(data: Any, keys: set[str]) -> Any:
    """JSON data without any entry of these names (sentences are for the report, not for the manifest)."""
    if isinstance(data, dict):
        return {name: without(value, keys) for name, value in data.items() if name not in keys}
    return data
