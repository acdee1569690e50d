"""Checkpoints of decoder-only models with random weights, in folders as they are downloaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from causal_fixtures import clinical_pairs
from causal_models import CASES, SIZES
from transformers import AutoConfig, AutoModelForCausalLM

from edgemt.training.chat_tokenizer import train_chat_tokenizer

TOKENS = 600


def tokenizer(directory: Path) -> Path:
    pairs = clinical_pairs(30)
    train_chat_tokenizer([*pairs.texts[0], *pairs.texts[1]], directory, TOKENS)
    return directory


def untrained(directory: Path, kind: str = "hunyuan_v1_dense", shards: str = "10GB", **changes: Any) -> Path:
    """A whole checkpoint: three layers of 64, unless `changes` of config.json say otherwise."""
    tokenizer(directory)
    sizes = {**SIZES, **CASES[kind], "vocab_size": TOKENS, **changes}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    model.save_pretrained(directory, max_shard_size=shards)
    (directory / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    return directory


def sentences(directory: Path, lines: int = 4) -> Path:
    """heldout.tsv and calibration.tsv of clinical lines."""
    zh, en = clinical_pairs(lines).texts
    rows = [f"zh\ten\t{a}\t{b}\nen\tzh\t{b}\t{a}" for a, b in zip(zh, en, strict=True)]
    text = "\n".join(["source_lang\ttarget_lang\tsource\ttarget", *rows]) + "\n"
    for name in ("heldout.tsv", "calibration.tsv"):
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def hollow(directory: Path, **changes: Any) -> Path:
    """A checkpoint of any size whose weights are a hole in a file: it takes no room on disk."""
    tokenizer(directory)
    sizes = {**SIZES, **CASES["hunyuan_v1_dense"], "vocab_size": TOKENS, **changes}
    config = AutoConfig.for_model("hunyuan_v1_dense", **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    header, at = {}, 0
    for name, tensor in model.named_parameters():
        end = at + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return directory
