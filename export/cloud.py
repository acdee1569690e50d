"""Is an FP16 bundle the FP32 model? Checked on the CPU, before it goes to a GPU.

Two things are looked at: whether any tensor that is FP16 in the bundle would leave its range (of the FP32
model, whose values are all there), and whether the bundle's answers are FP32's. ONNX Runtime's CPU provider
computes in FP32 what it has no FP16 kernel for, so that a GPU's rounding is not wholly seen here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edgemt.bundle import open_bundle
from edgemt.errors import EdgemtError
from edgemt.export import against_torch, memory
from edgemt.export.parity import STEPS, Answers, decode, follow
from edgemt.export.rows import Row
from edgemt.runtimes import open_program
from edgemt.runtimes.protocol import F32, I32, Program, Want

ERROR = 1e-2  # of the logits, relative: norm of the difference over norm
TOKENS = 0.99  # share of equal greedy tokens
LARGEST = float(np.finfo(np.float16).max)
LABEL = "validated on the CPU, not executed on a GPU"


@dataclass
class Half:
    """What was found."""

    relative_error: float
    tokens: int
    equal: int
    largest: float  # absolute value of a tensor that is FP16 in the bundle; FP16 ends at 65504
    at: str  # the name of that tensor

    @property
    def passed(self) -> bool:
        return self.relative_error <= ERROR and self.equal >= TOKENS * self.tokens and self.largest < LARGEST

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "passed": self.passed, "executed": LABEL}

    def __str__(self) -> str:
        return (
            f"FP16 beside FP32: relative error {self.relative_error:.1e} (allowed {ERROR:.0e}), "
            f"{self.equal}/{self.tokens} greedy tokens equal; largest FP16 value {self.largest:.4g} of "
            f"{LARGEST:.0f} ({self.at}); {LABEL}"
        )


class Decoding:
    """See `Reference` in parity.py: a program's own decoding."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def start(self, ids: I32, lengths: I32) -> None:
        source, rows = self.program.encode(ids, lengths), np.arange(len(ids), dtype=np.int32)
        self.session = self.program.open(source, rows, STEPS)

    def step(self, tokens: I32) -> F32:
        found = self.session.step(tokens[:, None], np.ones(len(tokens), np.int32), Want(logits=True))
        assert found.logits is not None
        return found.logits[:, -1].copy()


def check(fp32: Path, fp16: Path, rows: Sequence[Row]) -> Half:
    """Compare two bundles' answers to some sentences. Raises EdgemtError if FP16 is not good enough."""
    manifest = open_bundle(fp32).manifest
    asked = against_torch.sources(fp32, manifest, rows)
    answers = decode(Decoding(open_program(fp32, manifest)), manifest.model, asked)
    largest, at = extremes(fp32, halves(fp16), answers)
    memory.release()
    program = open_program(fp16, open_bundle(fp16).manifest)
    error = norm = 0.0
    tokens = equal = 0
    for batch in answers:
        for half, (_, _, single) in zip(follow(program, batch), batch.steps, strict=True):
            error += float(np.square(half - single, dtype=np.float64).sum())
            norm += float(np.square(single, dtype=np.float64).sum())
            tokens += len(single)
            equal += int((half.argmax(-1) == single.argmax(-1)).sum())
    found = Half((error / norm) ** 0.5, tokens, equal, largest, at)
    if not found.passed:
        raise EdgemtError(f"the FP16 bundle is not the model ({found}); export with --fp32")
    return found


def halves(fp16: Path) -> set[str]:
    """Tensors that are FP16 in the bundle's step graph, by the names that they have in FP32's."""
    model = onnx.load(fp16 / "step.onnx", load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name.removesuffix(".half")
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }


def extremes(fp32: Path, names: set[str], answers: Sequence[Answers]) -> tuple[float, str]:
    """The largest absolute value of these tensors over the prompts and the first steps, and whose it is."""
    largest: dict[str, float] = {}

    def listen(role: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        for name, values in tensors.items():
            largest[name] = max(largest.get(name, 0.0), float(np.abs(values).max(initial=0)))

    manifest = open_bundle(fp32).manifest
    made = {
        name
        for node in onnx.load(fp32 / "step.onnx", load_external_data=False).graph.node
        for name in node.output
    }
    taps = {"step": sorted(names & made)}
    program = open_program(fp32, manifest, taps=taps, on_tap=listen)
    for batch in answers:
        steps = Answers(batch.ids, batch.lengths, batch.most, batch.steps[:2])
        for _ in follow(program, steps):
            pass
    at = max(largest, key=lambda name: largest[name])
    return largest[at], at
