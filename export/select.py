"""Which variant ships: every one is translated with, judged against FP32 and clocked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemt.bundle import open_bundle
from edgemt.calibration.quantspec import QuantSpec
from edgemt.errors import EdgemtError
from edgemt.export import rows as tables
from edgemt.export.choose import Variant, choose
from edgemt.export.clock import affordable, clock
from edgemt.export.rows import Row
from edgemt.export.run import Export
from edgemt.translator import Translator

SAMPLES = 8
UNGATED = "The quality gate was not run (--no-gate): whether it translates as well as FP32 is not known."


def select(run: Export, found: dict[str, Path], heldout: list[Row], spec: QuantSpec | None) -> str:
    """Gate and clock every variant; the name of the one to ship. Raises EdgemtError if none passes."""
    variants = {name: Variant(name, size(path)) for name, path in found.items()}
    chosen = next(iter(run.candidates), "fp32")
    choice = f"{chosen}, as asked."
    if not run.request.gate:
        run.report["reasons"] = [UNGATED]
    if heldout:
        measure(run, variants, found, heldout)
        passed = {name: variants[name] for name in run.candidates if variants[name].passed}
        if not passed:
            raise EdgemtError(failure(run, variants, spec))
        chosen, choice = choose(passed)
        run.report["reasons"] = [
            f"{v.name} failed the gate: {reason}."
            for v in variants.values()
            if v.gate
            for reason in v.gate["reasons"]
        ]
    variants_json = {name: variant.to_json() for name, variant in variants.items()}
    run.report |= {"variants": variants_json, "chosen": chosen, "choice": choice, "passed": True}
    return chosen


def measure(run: Export, variants: dict[str, Variant], found: dict[str, Path], heldout: list[Row]) -> None:
    """Fill in each variant's gate and latency, against FP32 and on the same sentences."""
    from edgemt.calibration.gate import decode, judge

    translators = {name: Translator(open_bundle(path), run.request.threads) for name, path in found.items()}
    with run.stage(f"translating {len(heldout)} held-out sentences with {', '.join(found)}"):
        began = time.perf_counter()
        outputs = {name: decode(translator, heldout) for name, translator in translators.items()}
        sentences, rounds = affordable((time.perf_counter() - began) / len(heldout))
    with run.stage("the quality gate"):
        for name in run.candidates:
            result = judge(
                heldout,
                outputs["fp32"],
                outputs[name],
                max_bleu_drop=run.request.max_bleu_drop,
                max_new_critical=run.request.max_new_critical,
            )
            variants[name].gate = result.to_json()
    # Of sentences that all translate with as many tokens, so that a variant is not fast by falling silent.
    alike = [
        row
        for row, *made in zip(heldout, *outputs.values(), strict=True)
        if len({len(output.tokens) for output in made}) == 1
    ]
    timed = tables.interleaved(alike or heldout, sentences)
    with run.stage(f"clocking {', '.join(found)} on {len(timed)} sentences"):
        for name, latency in clock(translators, timed, rounds).items():
            variants[name].latency = latency
    run.report["latency"] = {"threads": run.request.threads, "sentences": len(timed), "rounds": rounds}
    run.report["samples"] = [
        {
            "direction": f"{row.source_lang}-{row.target_lang}",
            "source": row.source,
            "reference": row.target,
            "outputs": {name: outputs[name][heldout.index(row)].text for name in found},
        }
        for row in timed[:SAMPLES]
    ]


def failure(run: Export, variants: dict[str, Variant], spec: QuantSpec | None) -> str:
    """One sentence: which variants failed the gate and why, and the tensors that 8 bits hurt most."""
    from edgemt.calibration.sensitivity import worst_layers

    reasons = [f"{v.name}: {'; '.join(v.gate['reasons'])}" for v in variants.values() if v.gate]
    quantised = [name for names in run.target.activations(run.canonical).values() for name in names]
    layers_hurt = worst_layers(spec, quantised) if spec else []
    worst = [f"{layer.tensor} ({layer.sqnr_db:.0f} dB)" for layer in layers_hurt]
    layers = f"; 8 bits hurt most the layers that take {', '.join(worst)}" if worst else ""
    cure = "export with --fp16, another --observer or a larger --max-bleu-drop"
    if any(v.gate and unproven(v.gate) for v in variants.values()):
        cure = "give more sentences with --heldout (so few cannot prove less) or a larger --max-bleu-drop"
    return f"no variant passed the quality gate ({' | '.join(reasons)}){layers}; {cure}"


def unproven(gate: Mapping[str, Any]) -> bool:
    """Whether a gate failed by the bounds of scores alone, none of which dropped by more than is allowed."""
    scores = [side[metric] for side in gate["directions"].values() for metric in ("bleu", "chrf")]
    wide = sum(score["upper"] > gate["max_bleu_drop"] for score in scores)
    return len(gate["reasons"]) == wide and all(score["drop"] <= gate["max_bleu_drop"] for score in scores)


def size(directory: Path) -> int:
    """Bytes of all files of a bundle."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
