"""Contender: edgemt with the bundle of a decoder-only model, token by token.

python -m benchmarks.contenders.edgemt_tokens --model BUNDLE [--threads 1]
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contenders.tokens import loop

NEVER = -1  # an end that no token is


class Edgemt:
    """See `Engine` in tokens.py: the loop that `edgemt translate` runs, given tokens instead of a text."""

    def __init__(self, model: Path, threads: int) -> None:
        import numpy

        import edgemt
        from edgemt.generate import generate

        self.translator = edgemt.load(model, threads=threads)
        self.numpy, self.loop = numpy, generate
        self.model = self.translator.bundle.manifest.model

    def generate(self, prompt: list[int], most: int, ends: bool) -> Iterator[int]:
        program, np = self.translator.program, self.numpy
        before = np.array([prompt[:-1]], np.int32)
        source = program.encode(before, np.array([len(prompt) - 1], np.int32))
        session = program.open(source, np.zeros(1, np.int32), most)
        model = self.model if ends else dataclasses.replace(self.model, eos_id=NEVER)
        return self.loop(session, prompt, model, most)

    def facts(self) -> dict[str, Any]:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    loop(Edgemt(args.model, args.threads))


if __name__ == "__main__":
    main()
