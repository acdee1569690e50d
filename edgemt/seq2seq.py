"""The family of encoder-decoder models (Marian and its likes): how a text becomes the program's input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from edgemt.errors import UsageError
from edgemt.family import Request
from edgemt.manifest import Manifest
from edgemt.runtimes.protocol import Program
from edgemt.search import Hypothesis, SearchOptions, search
from edgemt.tokenizer import Tokenizer


def load(directory: Path, manifest: Manifest) -> Seq2Seq:
    return Seq2Seq(directory, manifest)


class Seq2Seq:
    """See `Family`."""

    prompts = False

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.model = manifest.model
        self.tokenizer = Tokenizer(directory, manifest.tokenizer)
        # Half of the positions, so that a translation twice as long has room. A small model is at its best
        # with sentences of the length it was trained on: the bundle may say.
        most = max(self.model.max_positions // 2, 8)
        self.limit = min(manifest.generation.get("max_source_tokens", most), most)
        # A sentence is measured, translated and counted: its tokens are asked for three times in a row.
        self._ids = lru_cache(maxsize=32)(lambda text: tuple(self.tokenizer.encode(text)))

    def tokens(self, text: str) -> int:
        return len(self._ids(text))

    def source(self, request: Request, most: int | None = None) -> list[int]:
        prefix = self.model.source_prefix.get(request.direction, [])
        ids, positions = self._ids(request.text), self.model.max_positions
        if most is not None:
            ids = ids[: min(most, positions - len(prefix) - 1)]
        row = [*prefix, *ids, self.model.eos_id]
        if len(row) > positions:
            raise UsageError(
                f"a sentence has {len(row)} tokens and the model takes {positions}; split it in two"
            )
        return row

    def generate(
        self,
        program: Program,
        requests: Sequence[Request],
        options: SearchOptions,
        most: int | None = None,
    ) -> list[Hypothesis]:
        rows = [self.source(request, most) for request in requests]
        constraints = [request.constraint for request in requests]
        prefix = max(len(self.model.source_prefix.get(request.direction, [])) for request in requests)
        return search(program, rows, self.model, options, constraints, prefix)
