"""Contender: edgemt with the bundle of a decoder-only model, token by token.

    python -m benchmarks.contenders.edgemt_tokens --model BUNDLE [--threads 1] [--draft BUNDLE] [--prefix]

`--prefix` starts each prompt from what its fixed beginning left in the caches, as `edgemt translate` does;
without it every prompt is read whole, as the other engines do unless told otherwise.
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

    def __init__(self, model: Path, threads: int, draft: str | None, prefix: bool) -> None:
        import numpy

        from edgemt import generate, prefixes
        from edgemt.family import Request
        from edgemt.translator import load

        self.translator = load(model, threads=threads, draft=draft)
        self.numpy, self.loop, self.cached = numpy, generate, prefixes.Prefixes() if prefix else None
        self.model, family = self.translator.bundle.manifest.model, self.translator.family
        one, other = (family.source(Request(text, "zh", "en")) for text in ("a", "1"))
        self.head = one[: prefixes.common(one, other)]  # that all prompts begin with
        self.drafts = getattr(family, "draft", None)
        self.stats = generate.DraftStats()

    def generate(self, prompt: list[int], most: int, ends: bool) -> Iterator[int]:
        program, np = self.translator.program, self.numpy
        begun = self.cached and self.cached.of(program, self.head, [prompt[:-1]])
        rest = np.array([prompt[begun.lengths[0] if begun else 0 : -1]], np.int32)
        source = program.encode(rest, np.array([rest.shape[1]], np.int32))
        session = program.open(source, np.zeros(1, np.int32), most, begun)
        model = self.model if ends else dataclasses.replace(self.model, eos_id=NEVER)
        draft = self.drafts and self.drafts.start(program, self.model, self.head)
        self.stats = type(self.stats)()
        return self.loop.generate(session, prompt, model, most, draft=draft, stats=self.stats)

    def facts(self) -> dict[str, Any]:
        return dataclasses.asdict(self.stats) if self.drafts else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--draft", metavar="BUNDLE|lookup")
    parser.add_argument("--prefix", action="store_true")
    args = parser.parse_args()
    loop(Edgemt(args.model, args.threads, args.draft, args.prefix))


if __name__ == "__main__":
    main()
