"""The checkpoint directory: a plain Hugging Face Marian model, and `edgemt.json` with how it was trained."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from torch import nn
from transformers import MarianMTModel

from edgemt.training.vocabulary import Vocabulary, copy_tokenizer


def write_checkpoint(
    directory: Path, model: MarianMTModel, vocabulary: Vocabulary, record: dict[str, object]
) -> None:
    """Write FP32 weights, configuration, tokenizer and record; an old directory is replaced by a rename."""
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    was = model.dtype
    model.float().save_pretrained(temporary)
    (temporary / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
    nn.Module.to(model, dtype=was)
    copy_tokenizer(vocabulary.directory, temporary)
    (temporary / "edgemt.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.replace(directory, old)
    os.replace(temporary, directory)
    shutil.rmtree(old, ignore_errors=True)
