"""One export: what was asked for, and what its stages hand on to each other."""

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

from edgemt.calibration.quantspec import QuantSpec
from edgemt.errors import UsageError
from edgemt.export import memory
from edgemt.export import rows as tables
from edgemt.export.bundles import write_bundle
from edgemt.export.checkpoints.read import Checkpoint
from edgemt.export.families import Family
from edgemt.export.graphs.graphset import Canonical
from edgemt.export.rows import Row
from edgemt.export.targets import PLAIN, Calibrated, Target
from edgemt.export.targets.weight_only import BLOCK4
from edgemt.stops import heed

KV8 = "-kv8"  # ends the name of FP32 with a cache of 8 bits, which FP32 itself is compared with


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
    scheme: str = "auto"  # of INT8: "auto" | "static" | "dynamic" | "blocks"
    target: str = "onnxruntime"
    calibration: Path | None = None  # None: the checkpoint's calibration.tsv
    calibration_sentences: int | None = None  # None: the family's number
    heldout: Path | None = None  # None: the checkpoint's heldout.tsv
    observer: str | None = None  # None: the family's
    rounding: str | None = None  # of INT4's weights: "gptq" | "nearest"; None: "gptq" if there are sentences
    int4_block: int = BLOCK4  # of INT4's weights, that share a scale
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
        if self.precision == "int8" and "int8-auto" in family.CANDIDATES and asked not in family.CANDIDATES:
            raise UsageError(f"a {family.NAME} model's INT8 has no --scheme {self.scheme}; leave it to auto")
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
        heed()
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
