"""A tiny training set and configuration: real clinical lines, a model of a few thousand weights."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import torch

from edgemt.training.config import Config
from edgemt.training.log import LOG, read_log
from edgemt.training.loop import Run
from edgemt.training.vocabulary import train_vocabulary

# One thread: models this small gain nothing from two, which on a busy machine only wait for each other.
torch.set_num_threads(1)

CLINICAL = Path(__file__).parents[2] / "examples/medical-zh-en/data/clinical.tsv.gz"


def write_tiny_data(directory: Path) -> Path:
    """train.tsv, dev.tsv and tokenizer/ from the first 240 lines of the clinical corpus."""
    with gzip.open(CLINICAL, "rt", encoding="utf-8", newline="") as file:
        pairs = [
            row[3:5] for row, _ in zip(csv.reader(file, delimiter="\t", quoting=3), range(240), strict=False)
        ]
    directory.mkdir()
    for name, some in (("train.tsv", pairs[:230]), ("dev.tsv", pairs[230:])):
        lines = ["corpus\tzh\ten", *(f"clinical\t{zh}\t{en}" for zh, en in some)]
        (directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    train_vocabulary((side for pair in pairs for side in pair), directory / "tokenizer", ("zh", "en"), 1200)
    return directory


def tiny_config(steps: int, **changes: Any) -> Config:
    values: dict[str, Any] = {
        "evaluate_sentences": 0,
        "model": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "ffn": 32},
        "data": {"batch_tokens": 1000},
        "optimizer": {"rate": 3e-3},
        "schedule": {"steps": steps, "warmup": 5, "cooldown": 0},
    }
    return Config.model_validate({**values, **changes})


def losses(directory: Path) -> dict[int, float]:
    """Loss at each step of the log, which has every step once."""
    steps = [(line["step"], line["loss"]) for line in read_log(directory / LOG) if "loss" in line]
    assert len(dict(steps)) == len(steps)
    return dict(steps)


def stop_after(run: Run, step: int) -> None:
    """Ask `run` to stop, as SIGTERM does, once it has done `step` steps."""
    update = run.average.update

    def update_and_stop(now: int) -> None:
        update(now)
        run.stopping = now >= step

    run.average.update = update_and_stop  # type: ignore[method-assign]
