"""What the contenders of decoder-only models share: a line of JSON in, a line of JSON out, and the clock.

In: {"prompt": [ids], "most": n, "ends": bool}. The engine decodes greedily, n tokens whatever they are, or
with "ends" up to and without the one that ends an answer. Out: {"tokens": [ids], "first_s": …, "all_s": …}:
seconds until the first new token, which is the prefill, and until the last one. Every engine is timed by this
code, in its own process; there is no tokenizer and no text in what is timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol


class Engine(Protocol):
    def generate(self, prompt: list[int], most: int, ends: bool) -> Iterator[int]:
        """Greedy tokens behind `prompt`, `most` at most, each as it comes; with `ends` up to the model's
        end."""
        ...

    def facts(self) -> dict[str, Any]:
        """What else is to be told of the last answer (steps of a draft); empty: nothing."""
        ...


def loop(engine: Engine) -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        tokens: list[int] = []
        begin = time.perf_counter()
        first = None
        for token in engine.generate(asked["prompt"], asked["most"], asked["ends"]):
            if first is None:
                first = time.perf_counter() - begin
            tokens.append(token)
        done = time.perf_counter() - begin
        answer = {"tokens": tokens, "first_s": done if first is None else first, "all_s": done}
        print(json.dumps(engine.facts() | answer), flush=True)
