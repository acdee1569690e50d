"""Canonical graphs: one FP32 ONNX graph a role, the same for every target.

A family is one module with `build(checkpoint, source_prefix) -> Canonical`; registering it is one line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgemt.errors import EdgemtError

if TYPE_CHECKING:
    from edgemt.export.checkpoints import Checkpoint
    from edgemt.export.graphs.graphset import Canonical

ARCHITECTURES = {"MarianMTModel": "edgemt.export.graphs.marian"}


def build(checkpoint: Checkpoint, source_prefix: dict[str, list[int]]) -> Canonical:
    """The canonical graphs of a checkpoint. Raises EdgemtError if tensors and config.json do not fit."""
    module = ARCHITECTURES.get(checkpoint.architecture)
    if module is None:
        known = ", ".join(ARCHITECTURES)
        raise EdgemtError(
            f"{checkpoint.directory / 'config.json'} names the architecture {checkpoint.architecture}, "
            f"and edgemt exports {known}; convert the checkpoint to one of these"
        )
    return importlib.import_module(module).build(checkpoint, source_prefix)
