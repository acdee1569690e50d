"""Canonical graphs: one FP32 ONNX graph a role, the same for every target.

A family is one module with `build(checkpoint, source_prefix) -> Canonical`; registering it is one line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemt.export.checkpoints.read import Checkpoint
    from edgemt.export.graphs.graphset import Canonical

ARCHITECTURES = {"MarianMTModel": "edgemt.export.graphs.marian"}


def build(checkpoint: Checkpoint, source_prefix: dict[str, list[int]]) -> Canonical:
    """The canonical graphs of a checkpoint. Raises EdgemtError if tensors and config.json do not fit."""
    return importlib.import_module(ARCHITECTURES[checkpoint.architecture]).build(checkpoint, source_prefix)
