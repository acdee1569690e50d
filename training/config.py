"""The TOML file of `edgemt train`, checked: an unknown key is named, with the nearest that exists."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgemt.errors import UsageError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """Shape of a new Marian student; a run that starts from a checkpoint must have the same."""

    d_model: int = 256
    encoder_layers: int = 6
    decoder_layers: int = 2
    heads: int = 8
    ffn: int = 1024
    dropout: float = Field(default=0.1, ge=0, lt=1)
    max_positions: int = 256


class Data(Section):
    """What is read, how often each corpus counts, and how large a batch is."""

    weights: dict[str, float] = {}
    """Times an epoch shows each pair of a corpus, in both directions (0.3: a new three tenths each epoch).
    A corpus without a weight is not used; no weights at all: every corpus once."""
    batch_tokens: int = Field(default=900, ge=16)
    """Tokens of a batch, padding included, of the longer side."""
    max_length: int = 120
    """Pairs with a side longer than this many pieces are left out."""


class Optimizer(Section):
    """`muon` orthogonalises the momentum of the matrices and leaves embeddings and vectors to AdamW."""

    name: Literal["adamw", "muon"] = "adamw"
    rate: float = Field(default=6e-4, gt=0)
    """Peak learning rate of AdamW."""
    muon_rate: float = Field(default=1.5e-3, gt=0)
    """Peak learning rate of Muon, scaled by each matrix's shape to AdamW's root mean square update."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm, measured after unscaling."""


class Schedule(Section):
    """Warm-up, then a constant rate, then a linear decay to zero over the last `cooldown` steps."""

    steps: int = Field(default=100_000, ge=1)
    warmup: int = Field(default=1000, ge=0)
    cooldown: int = Field(default=2000, ge=0)


class Every(Section):
    """How often things happen."""

    log_steps: int = Field(default=50, ge=1)
    save_minutes: float = Field(default=5.0, gt=0)
    evaluate_minutes: float = Field(default=20.0, gt=0)


class Config(Section):
    precision: Literal["fp32", "bf16", "fp16-o1", "fp16-pure"] = "bf16"
    """fp32; bf16 and fp16-o1: autocast over FP32 master weights, the latter with loss scaling; fp16-pure:
    everything in FP16, no master weights, no scaling (to show why not)."""
    seed: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Of the exponential average of the weights, which is what is evaluated and written."""
    max_skipped: int = Field(default=30, ge=1)
    """Steps in a row that may be skipped for a loss or gradient that is not finite."""
    initial_scale: float = Field(default=65536.0, gt=0)
    """First loss scale of fp16-o1."""
    evaluate_sentences: int = 100
    """Of each dev corpus and direction; 0: no evaluation."""
    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    every: Every = Every()

    def must_not_change(self) -> dict[str, Any]:
        """What a resumed run must share with the run it continues, for its losses to be the same."""
        return {
            **self.model_dump(
                mode="json", include={"precision", "seed", "label_smoothing", "ema_decay", "model", "data"}
            ),
            "optimizer.name": self.optimizer.name,
        }


def load_config(path: Path) -> Config:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: " + "; ".join(describe(item) for item in error.errors())) from error


def describe(error: Any) -> str:
    """One sentence for one of pydantic's errors."""
    *sections, key = [str(part) for part in error["loc"]]
    name = ".".join([*sections, key])
    if error["type"] != "extra_forbidden":
        return f"{name}: {error['msg']}"
    section: type[BaseModel] = Config
    for part in sections:
        section = section.model_fields[part].annotation  # type: ignore[assignment]
    nearest = difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0)[0]
    return f"unknown key {name}; the nearest is {'.'.join([*sections, nearest])}"
