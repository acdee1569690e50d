"""From a checkpoint to a bundle: read, build, compare with torch, calibrate, lower, gate, clock, seal."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from edgemt.bench.facts import machine_facts
from edgemt.bundle import open_bundle, seal
from edgemt.calibration.quantspec import QuantSpec
from edgemt.errors import EdgemtError, UsageError
from edgemt.export import against_torch, cloud, memory
from edgemt.export import rows as tables
from edgemt.export.bundles import write_bundle
from edgemt.export.calibrate import cache_ranges, cache_report, calibrate, with_cache8
from edgemt.export.checkpoints.read import Checkpoint, open_checkpoint
from edgemt.export.choose import Variant, choose
from edgemt.export.clock import ROUNDS, SENTENCES, clock
from edgemt.export.families import Family, check_architecture, family_of
from edgemt.export.graphs.graphset import Canonical
from edgemt.export.parity import STEPS
from edgemt.export.report import write_report
from edgemt.export.rounding import round_weights
from edgemt.export.rows import Row
from edgemt.export.targets import PLAIN, Calibrated, Target, check_target, target
from edgemt.export.targets.weight_only import BLOCK
from edgemt.export.workspace import ARCHIVE, check_output, publish, workspace
from edgemt.translator import Translator

SAMPLES = 8
UNGATED = "The quality gate was not run (--no-gate): whether it translates as well as FP32 is not known."
KV8 = "-kv8"  # ends the name of FP32 with a cache of 8 bits, which FP32 itself is compared with
GATED = ("int8", "int4")  # precisions that are shipped only if held-out sentences say so


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    checkpoint: Path
    output: Path
    config_from: Path | None = (
        None  # None: config.json and tokenizer are where the checkpoint's form has them
    )
    base: Path | None = None  # None: what the adapter names, if the checkpoint is one
    precision: str = "int8"  # "int8" | "int4" | "fp32" | "fp16"
    scheme: str = "auto"  # of INT8: "auto" | "static" | "dynamic"
    target: str = "onnxruntime"
    calibration: Path | None = None  # None: the checkpoint's calibration.tsv
    calibration_sentences: int | None = None  # None: the family's number
    heldout: Path | None = None  # None: the checkpoint's heldout.tsv
    observer: str | None = None  # None: the family's
    rounding: str | None = None  # of INT4's weights: "gptq" | "nearest"; None: "gptq" if there are sentences
    int4_block: int = BLOCK  # of INT4's weights, that share a scale
    int4_budget: float = 4.0  # bits that INT4's weights in layers may have on average
    kv: str = "fp32"  # "int8": the cache of a decoder-only model is 8 bits
    max_bleu_drop: float = 0.5
    max_new_critical: int | None = None  # None: no more than chance explains
    gate: bool = True  # False: ship without comparing translations
    name: str | None = None
    languages: str | None = None
    threads: int = 1
    force: bool = False
    command: str = ""

    def candidates(self, family: Family) -> Sequence[str]:
        """The precisions to try, beside FP32. Raises UsageError if the family has none of what was asked."""
        asked = f"int8-{self.scheme}" if self.precision == "int8" else self.precision
        if self.kv == "int8":
            asked = f"fp32{KV8}" if asked == "fp32" else asked
            if f"fp32{KV8}" not in family.CANDIDATES or asked == "fp16":
                raise UsageError(
                    "--kv int8 is for decoder-only models in --fp32, --int8 or --int4; leave it out"
                )
        if asked == "int8-dynamic" and "int8-static" in family.CANDIDATES and asked not in family.CANDIDATES:
            raise UsageError(f"a {family.NAME} model's INT8 has no --scheme dynamic; leave it to auto")
        if asked not in family.CANDIDATES:
            known = " or ".join(dict.fromkeys(f"--{name.split('-')[0]}" for name in family.CANDIDATES))
            raise UsageError(f"a {family.NAME} model is exported with {known}; --{self.precision} is not one")
        return family.CANDIDATES[asked]


@dataclass
class Stages:
    """Tells on stderr what is going on, and keeps time and peak memory of each stage for the report."""

    done: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        print(f"edgemt export: {name} …", file=sys.stderr, flush=True)
        start = time.perf_counter()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
        self.done.append(
            {"name": name, "seconds": round(time.perf_counter() - start, 2), "peak_rss_mb": round(peak)}
        )


@dataclass
class Export:
    """One export: what the stages hand on to each other."""

    request: Request
    work: Path
    checkpoint: Checkpoint
    candidates: Sequence[str]  # precisions beside FP32
    canonical: Canonical
    pairs: list[list[str]]
    plan: memory.Plan
    target: Target
    stage: Stages
    report: dict[str, Any]
    found: dict[str, Calibrated] = field(default_factory=dict)  # precision -> what calibration found for it

    def write(
        self, precision: str, spec: QuantSpec | None = None, canonical: Canonical | None = None
    ) -> Path:
        """Lower to `precision` and write a provisional bundle into the workspace.

        Of the whole model; with `canonical` of a part of it.
        """
        directory = self.work / (precision if canonical is None else "part")
        directory.mkdir()
        found = self.found.get(precision, PLAIN)
        canonical, precision = found.canonical or canonical or self.canonical, precision.removesuffix(KV8)
        lowered = self.target.lower(canonical, precision, found)
        for file, text in lowered.files.items():
            (directory / file).write_text(text, encoding="utf-8")
        write_bundle(
            directory,
            self.checkpoint,
            dataclasses.replace(canonical, states=lowered.states or canonical.states),
            lowered.graphs,
            name=self.report["name"],
            target=self.request.target,
            precision=precision,
            layers=lowered.layers,
            languages=self.pairs,
        )
        if spec is not None:
            spec.save(directory / "quant.json")
        return directory


class Sentences(NamedTuple):
    """Sentence pairs for a purpose: those of the file `given`, else the checkpoint's NAME.tsv."""

    name: str
    given: Path | None
    purpose: str
    needed: bool

    def rows(self, checkpoint: Checkpoint, pairs: list[list[str]]) -> list[Row]:
        """[] if there are none and none are needed."""
        path = self.given or checkpoint.directory / f"{self.name}.tsv"
        if self.given or path.is_file():
            return tables.read_rows(path, pairs)
        if self.needed:
            raise UsageError(
                f"{checkpoint.directory} has no {self.name}.tsv: give sentences for {self.purpose} with "
                f"--{self.name} FILE (tab-separated columns {', '.join(tables.COLUMNS)})"
            )
        return []


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
        outputs = {name: decode(translator, heldout) for name, translator in translators.items()}
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
    timed = tables.interleaved(alike or heldout, SENTENCES)
    with run.stage(f"clocking {', '.join(found)} on {len(timed)} sentences"):
        for name, latency in clock(translators, timed).items():
            variants[name].latency = latency
    run.report["latency"] = {"threads": run.request.threads, "sentences": len(timed), "rounds": ROUNDS}
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
    return (
        f"no variant passed the quality gate ({' | '.join(reasons)}){layers}; "
        "export with --fp16, another --observer or a larger --max-bleu-drop"
    )


def size(directory: Path) -> int:
    """Bytes of all files of a bundle."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


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
