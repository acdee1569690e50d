"""Decoder-only models: byte-level BPE, a chat template, one graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemt.errors import UsageError
from edgemt.export.checkpoints.read import Checkpoint
from edgemt.export.families import Pairs
from edgemt.export.graphs import causal
from edgemt.export.graphs.graphset import Canonical
from edgemt.export.languages import asked_pairs
from edgemt.prompts import LANGUAGES
from edgemt.runtimes.protocol import F32, I32

NAME = "causal"
CANDIDATES = {
    "fp32": (),
    "fp16": ("fp16",),
    "fp32-kv8": ("fp32-kv8",),  # with a cache of 8 bits
    "int4": ("int4",),
    "int8-auto": ("int8-static", "int8-blocks"),
    "int8-static": ("int8-static",),
    "int8-blocks": ("int8-blocks",),
}
OBSERVER = "minmax"  # what a percentile cuts off is the sink, which every later token looks at
CALIBRATION_SENTENCES = 128  # in FP32 a model of 1.5 B decodes three tokens a second
UNUSED = 0.1  # an embedding may have so many more rows than the tokenizer tokens (Qwen2's: 0.002)
PAIRS = [["zh", "en"], ["en", "zh"]]  # unless asked for others: a checkpoint does not say


def check(checkpoint: Checkpoint) -> None:
    shape, chat = causal.shape_of(checkpoint), checkpoint.chat
    if not shape.vocab * (1 - UNUSED) <= chat.size <= shape.vocab:
        raise UsageError(
            f"the tokenizer in {checkpoint.directory} has {chat.size} tokens and the model's embedding "
            f"{shape.vocab}; give the tokenizer files of this checkpoint"
        )


def languages(checkpoint: Checkpoint, asked: str | None) -> tuple[Pairs, dict[str, list[int]]]:
    pairs = asked_pairs(asked) if asked else PAIRS
    for language in {language for pair in pairs for language in pair}:
        if language not in LANGUAGES:
            raise UsageError(f"--languages {asked}: no language {language}; choose of {', '.join(LANGUAGES)}")
    return pairs, {}


def build(checkpoint: Checkpoint, prefixes: dict[str, list[int]]) -> Canonical:
    chat = checkpoint.chat
    unused = range(chat.size, causal.shape_of(checkpoint).vocab)  # rows that no token has
    return causal.build(checkpoint, chat.after[-1], chat.end, [*chat.control, *unused])


def write_tokenizer(checkpoint: Checkpoint, directory: Path) -> dict[str, Any]:
    chat = checkpoint.chat
    (directory / "tokenizer.json").write_text(chat.byte_pairs, encoding="utf-8")
    return {"tokenizer": {"bpe": "tokenizer.json"}, "chat": {"before": chat.before, "after": chat.after}}


class Reference:
    """See `Reference` in parity.py. Every row has a cache of its own, so that no padding is involved."""

    def __init__(self, torch_model: Any) -> None:
        self.model = torch_model

    def start(self, ids: I32, lengths: I32) -> None:
        import torch

        self.waiting = [
            torch.from_numpy(row[:length]).long() for row, length in zip(ids, lengths, strict=True)
        ]
        self.past: list[Any] = [None] * len(ids)

    def step(self, tokens: NDArray[np.int32]) -> F32:
        import torch

        rows = []
        for row, token in enumerate(tokens.tolist()):
            taken = torch.cat([self.waiting[row], torch.tensor([token])])[None]
            answer = self.model(taken, past_key_values=self.past[row], use_cache=True, logits_to_keep=1)
            self.past[row], self.waiting[row] = answer.past_key_values, taken[0, :0]
            rows.append(answer.logits[0, -1].numpy())
        return np.stack(rows)
