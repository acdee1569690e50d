"""A fresh process that packs a bundle's weights, or loads it and says what that took: see prepack_command.py.

`python -m edgemt.prepack_trial` takes a job as JSON on stdin and answers in JSON on stdout.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from edgemt.bench import process
from edgemt.errors import EdgemtError
from edgemt.fresh import ask

WIDE, SINGLE = 16, 8  # tokens of the trial fed in one step, and one by one behind them
KINDS = {"anon": "RssAnon", "file": "RssFile"}  # the process's own memory, and of files that are mapped


def fresh(**job: Any) -> dict[str, Any]:
    """What a new process answers to the job. Raises EdgemtError with what it said if it fails."""
    return ask(
        "edgemt.prepack_trial",
        job,
        f"the process that was to {job['what']} the weights",
        "end other programs and try again",
    )


def pack(bundle: Path, folder: Path) -> dict[str, Any]:
    """Write the packed graphs of the bundle in `bundle` into `folder`; returns the seconds it took."""
    from edgemt.bundle import MANIFEST, read_manifest
    from edgemt.runtimes.ort_prepack import write

    begun = time.perf_counter()
    for role, graph in read_manifest(bundle / MANIFEST).graphs.items():
        write(bundle / graph.file, folder, role)
    return {"seconds": time.perf_counter() - begun}


def measure(bundle: Path, packed: Path | None, threads: int) -> dict[str, Any]:
    """Seconds to verify and load the bundle; bytes of memory behind a few steps; a digest of their logits.

    With its graphs as they are in `packed`, whatever else there is; None: with its own.
    """
    from edgemt.bundle import open_bundle
    from edgemt.runtimes import onnxruntime, prepacked

    begun = time.perf_counter()
    opened = open_bundle(bundle)
    found = packed and prepacked.read(packed)
    if packed and found is None:
        raise EdgemtError(f"{packed} was damaged as soon as it was written; check the disk")
    program = onnxruntime.load(bundle, opened.manifest, threads=threads, find=lambda *_: found)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "answers": answers(program, opened.manifest.model.vocab_size), **memory()}


def answers(program: Any, vocabulary: int) -> str:
    """SHA-256 of the logits behind tokens of a fixed random text: of a wide step, then one by one."""
    import hashlib

    import numpy as np

    from edgemt.runtimes.protocol import Want

    ids = np.random.default_rng(0).integers(0, vocabulary, (1, WIDE + SINGLE)).astype(np.int32)
    session, found, at = program.open(None, np.zeros(1, np.int32), WIDE + SINGLE), hashlib.sha256(), 0
    for width in (WIDE, *[1] * SINGLE):
        step = session.step(ids[:, at : at + width], np.full(1, width, np.int32), Want(logits=True))
        assert step.logits is not None
        found.update(step.logits.tobytes())
        at += width
    session.close()
    return found.hexdigest()


def memory() -> dict[str, int]:
    """Bytes that this process holds; nothing where the system does not tell."""
    told = {key: process.memory(field) for key, field in KINDS.items()}
    return {key: size for key, size in told.items() if size is not None}


def main() -> int:
    job: dict[str, Any] = json.load(sys.stdin)
    bundle, folder = Path(job["bundle"]), Path(job["folder"]) if job["folder"] else None
    try:
        if job["what"] == "pack" and folder:
            answer = pack(bundle, folder)
        else:
            answer = measure(bundle, folder, job["threads"])
    except EdgemtError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
