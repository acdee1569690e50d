"""Targets: each lowers the canonical graphs to what one runtime loads. One line a target, one module."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

from edgemt.errors import UsageError
from edgemt.export.graphs.graphset import Canonical, GraphSet, Layer
from edgemt.export.targets.weight_only import BLOCK, Rounding, nearest
from edgemt.runtimes.protocol import StateSpec

TARGETS = {"onnxruntime": "edgemt.export.targets.onnxruntime", "cloud": "edgemt.export.targets.cloud"}
Ranges = Mapping[str, tuple[float, float]]  # canonical tensor -> (low, high)


@dataclass(frozen=True)
class Calibrated:
    """What calibration found, for the precisions that need it."""

    ranges: Ranges = field(default_factory=dict)  # of activations, for static INT8
    schemes: Mapping[str, str] = field(default_factory=dict)  # product -> "rows" or "blocks", else static
    canonical: Canonical | None = None  # to lower instead: its outliers are folded away
    rounding: Rounding = nearest  # of weights in blocks
    bits: Mapping[str, int] = field(default_factory=dict)  # node -> bits, where not the precision's own
    block: int = BLOCK  # weights that share a scale, in INT4


PLAIN = Calibrated()


class Lowered(NamedTuple):
    """What a target made: graphs to write, and the table of layers for the manifest."""

    graphs: GraphSet
    layers: list[Layer]
    states: list[StateSpec] | None = None  # None: the canonical graphs'
    files: Mapping[str, str] = {}  # texts that go into the bundle, by name


class Target(Protocol):
    """What the module of a target has."""

    def activations(self, graphs: GraphSet) -> dict[str, list[str]]:
        """The tensors of each graph whose ranges "int8-static" needs."""
        ...

    def lower(self, canonical: Canonical, precision: str, found: Calibrated = PLAIN) -> Lowered:
        """Lower to "fp32", "fp16", "int8-static", "int8-dynamic", "int8-blocks" or "int4"."""
        ...


def check_target(name: str, family: str, precision: str) -> None:
    """Raise UsageError if the target is not for such a model."""
    if name == "cloud" and (family != "causal" or precision not in ("fp16", "fp32")):
        raise UsageError("the target cloud takes decoder-only models, with --fp16 or --fp32")
    if name != "cloud" and family == "causal" and precision == "fp16":
        raise UsageError("FP16 of a decoder-only model is for a server's GPU; add --target cloud")


def target(name: str) -> Target:
    """The target of that name. Raises UsageError if there is none."""
    if name not in TARGETS:
        raise UsageError(f"there is no target {name}; edgemt exports to {', '.join(TARGETS)}")
    return cast(Target, importlib.import_module(TARGETS[name]))
