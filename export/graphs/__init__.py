"""Canonical graphs: one FP32 ONNX graph a role, the same for every target.

A family is one module with `shape_of(checkpoint)`, which refuses a configuration that it cannot export, and
`build(checkpoint, source_prefix) -> Canonical`; registering it is one line.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from edgemt.errors import EdgemtError

if TYPE_CHECKING:
    from edgemt.export.checkpoints.read import Checkpoint
    from edgemt.export.graphs.graphset import Canonical

ARCHITECTURES = {"MarianMTModel": "edgemt.export.graphs.marian"}


def check_architecture(checkpoint: Checkpoint) -> None:
    """Raise EdgemtError if there are no canonical graphs for this configuration; no weight is read."""
    module = _module(checkpoint)
    checkpoint.check_config()
    module.shape_of(checkpoint)


def build(checkpoint: Checkpoint, source_prefix: dict[str, list[int]]) -> Canonical:
    """The canonical graphs of a checkpoint whose weights are checked. Raises EdgemtError as above."""
    return _module(checkpoint).build(checkpoint, source_prefix)


def _module(checkpoint: Checkpoint) -> ModuleType:
    if checkpoint.architecture not in ARCHITECTURES:
        raise EdgemtError(
            f"{checkpoint.directory / 'config.json'} names the architecture {checkpoint.architecture}, which "
            f"has no canonical graphs yet; edgemt exports {', '.join(ARCHITECTURES)} (any OPUS-MT model)"
        )
    return importlib.import_module(ARCHITECTURES[checkpoint.architecture])
