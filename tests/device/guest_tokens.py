"""What runs inside the emulated root while a decoder-only bundle is counted: prefill and decode, each marked.

    guest_tokens.py BUNDLE NEW REPEATS ID…

As llama_guest.cpp: the prompt and NEW tokens greedily, once to warm up, then REPEATS times counted. It needs
no tokenizer. Writes JSON to stdout: the new tokens, versions, and the process's maps.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
from guest import BEGIN, END, mark

from edgemt.bundle import open_bundle
from edgemt.generate import generate
from edgemt.runtimes import open_program

NEVER = -1  # an end that no token is


def main(path: str, wanted: int, repeats: int, prompt: list[int]) -> None:
    bundle = open_bundle(Path(path))
    program = open_program(bundle.directory, bundle.manifest, threads=1)
    model = dataclasses.replace(bundle.manifest.model, eos_id=NEVER)
    before, first = np.array([prompt[:-1]], np.int32), np.zeros(1, np.int32)
    found: list[int] = []
    for repeat in range(repeats + 1):
        gc.collect()
        source = program.encode(before, first + before.shape[1])
        tokens = generate(program.open(source, first, wanted), prompt, model, wanted)
        counted = repeat > 0
        if counted:
            mark(BEGIN)
        found = [next(tokens)]
        if counted:
            mark(END)
            mark(BEGIN)
        found += tokens
        if counted:
            mark(END)
    tools = {name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime")}
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    json.dump({"tokens": found, "tools": tools, "maps": maps}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(word) for word in sys.argv[4:]])
