"""A tiny causal model and data for it: real clinical lines in their scenarios, and their terms."""

from __future__ import annotations

import csv
import gzip
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from training_fixtures import CLINICAL

from edgemt.training.chat_tokenizer import train_chat_tokenizer
from edgemt.training.config import Config
from edgemt.training.data import Pairs
from edgemt.training.loop import Run

torch.set_num_threads(1)

SHAPE = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 160}


def clinical_rows(count: int, begin: int = 0) -> list[list[str]]:
    """Scenario, line, register, Chinese, English, split of some lines."""
    with gzip.open(CLINICAL, "rt", encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return list(islice(reader, begin, begin + count))


def clinical_terms() -> list[tuple[str, str]]:
    with gzip.open(CLINICAL.with_name("terms.tsv.gz"), "rt", encoding="utf-8", newline="") as file:
        return [(row[0], row[1]) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def clinical_pairs(count: int, begin: int = 0) -> Pairs:
    rows = clinical_rows(count, begin)
    texts = [row[3] for row in rows], [row[4] for row in rows]
    return Pairs(("zh", "en"), ["clinical"] * len(rows), texts, [row[0] for row in rows])


def write_causal_data(directory: Path, count: int = 160, size: int = 1500, begin: int = 0) -> Path:
    """train.tsv, dev.tsv (the ten lines after it), terms.tsv and tokenizer/."""
    directory.mkdir()
    pairs = clinical_pairs(count + 10, begin)
    lines = [
        f"clinical\t{zh}\t{en}\t{scenario}"
        for zh, en, scenario in zip(*pairs.texts, pairs.document, strict=True)
    ]
    for name, some in (("train", lines[:count]), ("dev", lines[count:])):
        text = "\n".join(["corpus\tzh\ten\tdocument", *some])
        (directory / f"{name}.tsv").write_text(text + "\n", encoding="utf-8")
    terms = ["zh\ten", *(f"{zh}\t{en}" for zh, en in clinical_terms())]
    (directory / "terms.tsv").write_text("\n".join(terms) + "\n", encoding="utf-8")
    train_chat_tokenizer([*pairs.texts[0], *pairs.texts[1]], directory / "tokenizer", size)
    return directory


def learnt_by_heart(directory: Path, lines: int = 12, steps: int = 160, **shape: Any) -> Path:
    """A tiny HunYuanDenseV1 that says some clinical lines both ways, with files of those lines."""
    config = causal_config(
        steps,
        shape={"prompts": {"terminology": 0.0, "context": 0.0, "formatted": 0.0}, **shape},
        optimizer={"rate": 3e-3, "weight_decay": 0.0},
        schedule={"steps": steps, "warmup": 20, "cooldown": 40},
        ema_decay=0.0,
    )
    run = Run(config, write_causal_data(directory / "data", lines, 900), directory / "run")
    run.train()
    checkpoint = directory / "checkpoint"
    run.write_checkpoint(checkpoint)
    zh, en = clinical_pairs(lines).texts
    rows = [f"zh\ten\t{a}\t{b}\nen\tzh\t{b}\t{a}" for a, b in zip(zh, en, strict=True)]
    text = "\n".join(["source_lang\ttarget_lang\tsource\ttarget", *rows]) + "\n"
    for name in ("heldout.tsv", "calibration.tsv"):
        (checkpoint / name).write_text(text, encoding="utf-8")
    return checkpoint


def causal_config(steps: int = 10, shape: dict[str, Any] | None = None, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "precision": "fp32",
        "label_smoothing": 0.0,
        "evaluate_sentences": 0,
        "model": {"family": "causal"},
        "causal": {**SHAPE, **(shape or {})},
        "data": {"batch_tokens": 1500},
        "optimizer": {"rate": 3e-3},
        "schedule": {"steps": steps, "warmup": 5, "cooldown": 0},
    }
    return Config.model_validate({**values, **changes})
