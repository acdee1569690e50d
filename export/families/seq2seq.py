"""Encoder-decoder models: Marian, with SentencePiece on both sides."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemt.export import languages as spoken
from edgemt.export.checkpoints.facts import TOKENIZER_FILES
from edgemt.export.checkpoints.read import Checkpoint
from edgemt.export.families import Pairs
from edgemt.export.graphs import marian
from edgemt.export.graphs.graphset import Canonical
from edgemt.runtimes.protocol import F32, I32

NAME = "seq2seq"
CANDIDATES = {
    "fp32": (),
    "fp16": ("fp16",),
    "int8-auto": ("int8-static", "int8-dynamic"),
    "int8-static": ("int8-static",),
    "int8-dynamic": ("int8-dynamic",),
}
OBSERVER = "percentile"
CALIBRATION_SENTENCES = 2000


def check(checkpoint: Checkpoint) -> None:
    marian.shape_of(checkpoint)


def languages(checkpoint: Checkpoint, asked: str | None) -> tuple[Pairs, dict[str, list[int]]]:
    return spoken.languages(checkpoint, asked)


def build(checkpoint: Checkpoint, prefixes: dict[str, list[int]]) -> Canonical:
    return marian.build(checkpoint, prefixes)


def write_tokenizer(checkpoint: Checkpoint, directory: Path) -> dict[str, Any]:
    """Copy the tokenizer files, each content once (a joint vocabulary has the same model on both sides)."""
    folder = directory / "tokenizer"
    folder.mkdir()
    names: dict[bytes, str] = {}
    roles = {}
    for role, file in TOKENIZER_FILES.items():
        content = (checkpoint.directory / file).read_bytes()
        if content not in names:
            names[content] = f"tokenizer/{file}"
            shutil.copyfile(checkpoint.directory / file, folder / file)
        roles[role] = names[content]
    return {"tokenizer": roles}


class Reference:
    """See `Reference` in parity.py."""

    def __init__(self, torch_model: Any) -> None:
        self.model = torch_model

    def start(self, ids: I32, lengths: I32) -> None:
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        self.mask = torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None]).long()
        encoded = self.model.get_encoder()(torch.from_numpy(ids).long(), attention_mask=self.mask)
        self.hidden, self.past = BaseModelOutput(last_hidden_state=encoded[0]), None

    def step(self, tokens: NDArray[np.int32]) -> F32:
        import torch

        answer = self.model(
            encoder_outputs=self.hidden,
            attention_mask=self.mask,
            decoder_input_ids=torch.from_numpy(tokens).long()[:, None],
            past_key_values=self.past,
            use_cache=True,
        )
        self.past = answer.past_key_values
        return answer.logits[:, -1].numpy()
