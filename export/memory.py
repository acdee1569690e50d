"""What an export needs of memory and disk, worked out from the shapes of the weights before it starts.

Memory is what the process itself holds; files that are mapped (the weights of the FP32 bundle) lie in the
page cache, which the system takes back when it must, and are not counted.
"""

from __future__ import annotations

import ctypes
import gc
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edgemt.doctor.system import megabytes, memory_available
from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.read import Checkpoint
from edgemt.export.depth import LAYER

BASE = 450_000_000  # bytes: Python, torch, transformers and ONNX Runtime, before any weight
MARGIN = 1.1  # on what is worked out: allocators and what a step computes
TORCH = 1.25  # the same with torch: 10.6 GB were used at HY-MT 1.8B's full shape, where 8.2 were worked out
# Bytes a weight takes once it is lowered: in the layers, and in embedding and head.
BYTES = {
    "fp32": (4.0, 4.0),
    "fp16": (2.0, 2.0),
    "int8-static": (1.01, 1.13),
    "int8-dynamic": (1.01, 1.13),
    "int8-blocks": (1.04, 1.13),
    # 4 bits, and a scale for 32 of them; some layers have 8, and the head has 8 and 4.
    "int4": (0.66, 1.65),
}
MORE = "close other programs, or export on a machine with more memory"
WEIGHTS_ONLY = "export on a machine with more memory, or with --int4 and --no-gate"
NO_GATE = "export on a machine with more memory, or leave the quality gate out with --no-gate"


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights. `layers` is empty where a model cannot be looked at a few layers at a time."""

    tables: int  # all that is outside the layers: embeddings and heads
    layers: tuple[int, ...]
    largest: int  # of one weight
    vocab: int

    @property
    def total(self) -> int:
        return self.tables + sum(self.layers)

    def bytes(self, precision: str) -> int:
        """Of the lowered weights."""
        inside, outside = BYTES[precision]
        return round(inside * sum(self.layers) + outside * self.tables)

    def of(self, layers: int) -> int:
        """Weights of a model of so many layers, with the embedding and the head."""
        return self.tables + layers * max(self.layers, default=0)


class Need(NamedTuple):
    """What one stage takes, in bytes, and what to do where there is not so much."""

    stage: str
    bytes: int
    cure: str


@dataclass(frozen=True)
class Plan:
    """How an export goes about it here. `parts`: (first layer, layers) of each comparison with torch."""

    parts: tuple[tuple[int, int], ...]  # () where the whole model is compared at once
    whole: bool  # FP32 is written as a bundle
    needs: tuple[Need, ...]
    disk: int  # bytes

    def to_json(self) -> dict[str, int]:
        return {**{f"memory for {need.stage}": need.bytes for need in self.needs}, "disk": self.disk}


def sizes(checkpoint: Checkpoint) -> Sizes:
    """Reads no weight."""
    layers: dict[int, int] = defaultdict(int)
    tables = 0
    for name, stored in checkpoint.stored.items():
        if found := LAYER.match(name):
            layers[int(found[1])] += stored.size
        else:
            tables += stored.size
    largest = max((stored.size for stored in checkpoint.stored.values()), default=0)
    in_order = tuple(layers[number] for number in sorted(layers))
    return Sizes(tables, in_order, largest, int(checkpoint.config.get("vocab_size") or 0))


def plan(
    found: Sizes,
    candidates: Sequence[str],
    answers: int,
    *,
    calibrates: bool,
    gated: bool,
    available: int | None,
) -> Plan:
    """What an export to FP32 and the `candidates` takes, in as much memory as there is.

    `answers`: logits' rows kept of torch's decoding. To calibrate and to be gated the FP32 bundle must fit
    whole. Raises EdgemtError if a stage does not fit.
    """
    room = float("inf") if available is None else available
    depth = len(found.layers)
    kept = 4 * answers * found.vocab
    head = 4 * found.largest  # ONNX Runtime turns the head as it loads: for a while it is there twice

    def comparing(layers: int) -> int:
        return round(BASE + TORCH * (4 * found.of(layers) + head + kept))

    if comparing(depth) <= room or not depth:
        at_once, parts = depth, ()
    else:
        at_once = next((n for n in range(depth, 1, -1) if comparing(n) <= room), 1)
        parts = tuple((at, min(at_once, depth - at)) for at in range(0, depth, at_once))
    needs = [Need("the comparison with torch", comparing(at_once), MORE)]
    needs += [Need(f"lowering to {name}", _lowering(found, name), MORE) for name in ("fp32", *candidates)]
    decoding = found.bytes("fp32") + head
    if calibrates:
        needs.append(Need("the calibration in FP32", round(BASE + MARGIN * decoding), WEIGHTS_ONLY))
    if gated:
        decoding += sum(found.bytes(name) for name in candidates)
        needs.append(Need("the quality gate", round(BASE + MARGIN * decoding), NO_GATE))
    for need in needs:
        if need.bytes > room:
            raise EdgemtError(
                f"this export needs about {megabytes(need.bytes)} of memory for {need.stage}, and "
                f"{megabytes(room)} are available; {need.cure}"
            )
    whole = calibrates or gated or not candidates or not parts
    names = ["fp32", *candidates] if whole else candidates
    written = sum(found.bytes(name) for name in names) + (4 * found.of(at_once) if parts else 0)
    return Plan(parts, whole, tuple(needs), round(MARGIN * written))


def _lowering(found: Sizes, precision: str) -> int:
    """FP32 and FP16 pass through one weight at a time; the other precisions keep what they have made."""
    made = 0 if precision in ("fp32", "fp16") else found.bytes(precision)
    return round(BASE + MARGIN * (made + 5 * found.largest))


def check_disk(output: Path, need: int) -> None:
    """Raise EdgemtError if the folder of `output`, where all is written, has less room."""
    total, _, free = shutil.disk_usage(output.parent)
    if free < need and total:  # some file systems do not tell
        raise EdgemtError(
            f"this export needs about {megabytes(need)} of disk in {output.parent}, and {megabytes(free)} "
            "are free; free some space, or name an output on a larger disk"
        )


def available() -> int | None:
    """Bytes that this process may still take; None where the system does not tell."""
    return memory_available()


def release() -> None:
    """Give memory that is no longer used back to the system, where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
