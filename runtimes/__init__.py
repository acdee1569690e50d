"""Runtimes: what executes a compiled bundle. Registering one is one line here and one module.

A module has `load(directory, manifest, *, threads=1, taps=None, on_tap=None) -> Program` and is imported only
when a bundle's target names it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgemt.errors import EdgemtError

if TYPE_CHECKING:
    from edgemt.manifest import Manifest
    from edgemt.runtimes.protocol import Program, RoleTensors, Tap

RUNTIMES = {"onnxruntime": "edgemt.runtimes.onnxruntime", "cloud": "edgemt.runtimes.cloud"}


def open_program(
    directory: Path,
    manifest: Manifest,
    *,
    threads: int = 1,
    taps: RoleTensors | None = None,
    on_tap: Tap | None = None,
) -> Program:
    """The program of the bundle in `directory`, on `threads` cores.

    `taps` names intermediate tensors by graph role; `on_tap` receives them after every run of that graph.
    Raises EdgemtError if no runtime here executes the bundle's target, or if a graph cannot be loaded.
    """
    module = RUNTIMES.get(manifest.target)
    if module is None:
        raise EdgemtError(
            f"{directory} was exported for {manifest.target!r}, and this edgemt runs {', '.join(RUNTIMES)}; "
            "export the checkpoint again with one of these as --target"
        )
    return importlib.import_module(module).load(
        directory, manifest, threads=threads, taps=taps, on_tap=on_tap
    )
