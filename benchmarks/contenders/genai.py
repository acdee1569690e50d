"""Contender: onnxruntime-genai with a folder that its model builder made.

python -m benchmarks.contenders.genai --model DIR [--threads 1]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contenders.tokens import loop


class Genai:
    """See `Engine` in tokens.py."""

    def __init__(self, model: Path, threads: int) -> None:
        import onnxruntime_genai

        self.api = onnxruntime_genai
        config = onnxruntime_genai.Config(str(model))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = onnxruntime_genai.Model(config)

    def generate(self, prompt: list[int], most: int, ends: bool) -> Iterator[int]:
        length = len(prompt) + most
        params = self.api.GeneratorParams(self.model)
        # It offers no other way to go on behind the end of an answer than to forbid it.
        shortest = {} if ends else {"min_length": length}
        params.set_search_options(do_sample=False, max_length=length, **shortest)
        generator = self.api.Generator(self.model, params)
        generator.append_tokens([prompt])
        end = set(self.ends)
        for _ in range(most):
            generator.generate_next_token()
            token = int(generator.get_next_tokens()[0])
            if ends and token in end:
                return
            yield token

    @property
    def ends(self) -> list[int]:
        found = self.api.Tokenizer(self.model).eos_token_ids
        return [int(token) for token in found]

    def facts(self) -> dict[str, Any]:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    loop(Genai(args.model, args.threads))


if __name__ == "__main__":
    main()
