"""Bundles for a server: ONNX Runtime on its GPU where onnxruntime-gpu offers one, else on the CPU.

The CPU gives the same answers and is there to check a bundle; it computes in FP32 what it has no FP16 kernel
for. States pass through the CPU's memory at every step: `run_cuda.py` in the bundle keeps them on the GPU.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from edgemt.manifest import Manifest
from edgemt.runtimes import onnxruntime
from edgemt.runtimes.protocol import RoleTensors, Tap

PREFERRED = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")


def load(
    directory: Path,
    manifest: Manifest,
    *,
    threads: int = 1,
    taps: RoleTensors | None = None,
    on_tap: Tap | None = None,
) -> onnxruntime.OrtProgram:
    """See `runtimes.onnxruntime.load`."""
    there = ort.get_available_providers()
    providers = [name for name in PREFERRED if name in there]
    return onnxruntime.load(
        directory, manifest, threads=threads, taps=taps, on_tap=on_tap, providers=providers
    )
