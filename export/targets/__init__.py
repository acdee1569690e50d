"""Targets: each lowers the canonical graphs to what one runtime loads. One line a target, one module."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

from edgemt.errors import UsageError
from edgemt.export.graphs.graphset import Canonical, GraphSet, Layer
from edgemt.export.targets.weight_only import Rounding, nearest

TARGETS = {"onnxruntime": "edgemt.export.targets.onnxruntime"}
Ranges = Mapping[str, tuple[float, float]]  # canonical tensor -> (low, high)


@dataclass(frozen=True)
class Calibrated:
    """What calibration found, for the precisions that need it."""

    ranges: Ranges = field(default_factory=dict)  # of activations, for static INT8
    schemes: Mapping[str, str] = field(default_factory=dict)  # product -> "rows" or "blocks", else static
    canonical: Canonical | None = None  # to lower instead: its outliers are folded away
    rounding: Rounding = nearest  # of weights in blocks
    bits: Mapping[str, int] = field(default_factory=dict)  # node -> bits, where not the precision's own


PLAIN = Calibrated()


class Lowered(NamedTuple):
    """What a target made: graphs to write, and the table of layers for the manifest."""

    graphs: GraphSet
    layers: list[Layer]


class Target(Protocol):
    """What the module of a target has."""

    def activations(self, graphs: GraphSet) -> dict[str, list[str]]:
        """The tensors of each graph whose ranges "int8-static" needs."""
        ...

    def lower(self, canonical: Canonical, precision: str, found: Calibrated = PLAIN) -> Lowered:
        """Lower to "fp32", "fp16", "int8-static", "int8-dynamic" or "int4"."""
        ...


def target(name: str) -> Target:
    """The target of that name. Raises UsageError if there is none."""
    if name not in TARGETS:
        raise UsageError(f"there is no target {name}; edgemt exports to {', '.join(TARGETS)}")
    return cast(Target, importlib.import_module(TARGETS[name]))
