"""The TOML file of `edgemt train`, checked: an unknown key is named, with the nearest that exists."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgemt.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16-o1", "fp16-pure"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """The family, and the shape of a new Marian student.

    A checkpoint has its own shape: what is set here must agree with it.
    """

    family: Literal["marian", "causal"] = "marian"
    d_model: int = 256
    encoder_layers: int = 6
    decoder_layers: int = 2
    heads: int = 8
    ffn: int = 1024
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of a checkpoint, its own unless set."""
    max_positions: int = 256


class Prompts(Section):
    """What a causal model's prompts give beside the text: shares of the examples that allow it.

    Each is drawn for itself, so a few prompts have several things, as a request may have.
    """

    terminology: float = Field(default=0.2, ge=0, le=1)
    """Terms of terms.tsv that stand on both sides, with their translations."""
    context: float = Field(default=0.2, ge=0, le=1)
    """Lines of the same document that come before."""
    context_lines: int = Field(default=3, ge=1)
    """Most of these lines."""
    formatted: float = Field(default=0.15, ge=0, le=1)
    """Tags around spans, to be kept."""


class Causal(Section):
    """Shape of a new causal model, and how its examples are prompted. A checkpoint has its own shape: what is
    set here must agree with it."""

    kind: Literal["hunyuan_v1_dense", "qwen2", "llama"] = "hunyuan_v1_dense"
    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 768
    vocab_size: int = Field(default=0, ge=0)
    """0: as many as the tokenizer has tokens."""
    rope_theta: float = 10000.0
    rope_alpha: float = Field(default=1000.0, ge=0)
    """NTK scaling of the RoPE base, of hunyuan_v1_dense only; 0: none."""
    max_positions: int = Field(default=2048, ge=1)
    tie: bool = True
    """One matrix for embedding and head."""
    prompts: Prompts = Prompts()


class Lora(Section):
    """Low-rank adapters beside the linear layers of a checkpoint; nothing else is trained."""

    rank: int = Field(default=0, ge=0)
    """0: no adapters, everything is trained."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapters count alpha / rank times."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: list[str] = []
    """Names of the layers (q_proj, v_proj …); none: all linear layers but the head."""
    merge: bool = True
    """Write checkpoints with the adapters merged, and the adapters beside them; false: the adapters alone."""


class LossScale(Section):
    """Dynamic loss scaling of fp16-o1 (torch.amp.GradScaler)."""

    initial: float = Field(default=65536.0, gt=0)
    growth: float = Field(default=2.0, gt=1)
    backoff: float = Field(default=0.5, gt=0, lt=1)
    interval: int = Field(default=2000, ge=1)
    """Good steps in a row before the scale grows."""


class Data(Section):
    """What is read, how often each corpus counts, and how large a batch is."""

    weights: dict[str, float] = {}
    """Times an epoch shows each pair of a corpus, in every direction (0.3: a new three tenths each epoch).
    A corpus without a weight is not used; no weights at all: every corpus once."""
    directions: list[str] = []
    """Such as ["zh-en"]; none: all that the data and the model have."""
    batch_tokens: int = Field(default=900, ge=16)
    """Tokens of a micro-batch, padding included, of the longer side."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches of an optimizer step, over all processes together."""
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
    """Warm-up, then the rate as `kind` says, then over the last `cooldown` steps linearly to zero."""

    kind: Literal["constant", "linear", "cosine", "inverse-sqrt"] = "constant"
    """`linear` and `cosine` fall to zero at `steps`; `inverse-sqrt` is the peak times sqrt(warmup / step)."""
    steps: int = Field(default=100_000, ge=1)
    warmup: int = Field(default=1000, ge=0)
    cooldown: int = Field(default=2000, ge=0)


class Every(Section):
    """How often things happen: after so many minutes, and also after so many steps (0: never)."""

    save_minutes: float = Field(default=5.0, ge=0)
    save_steps: int = Field(default=0, ge=0)
    evaluate_minutes: float = Field(default=20.0, ge=0)
    evaluate_steps: int = Field(default=0, ge=0)


class Keep(Section):
    """Checkpoints kept beside the state, one made at every evaluation, and when to end early."""

    last: int = Field(default=0, ge=0)
    best: int = Field(default=0, ge=0)
    """By the mean BLEU over the dev corpora and directions."""
    patience: int = Field(default=0, ge=0)
    """Evaluations in a row without a better mean BLEU after which the run ends; 0: never."""


class Config(Section):
    precision: Precision = "bf16"
    """fp32; bf16 and fp16-o1: autocast over FP32 master weights, the latter with loss scaling; fp16-pure:
    everything in FP16, no master weights, no scaling (to show why not)."""
    seed: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Of the exponential average of the weights, which is what is evaluated and written; 0: no average."""
    max_skipped: int = Field(default=30, ge=1)
    """Steps in a row that may be skipped for a loss or gradient that is not finite."""
    evaluate_sentences: int = Field(default=100, ge=0)
    """Of each dev corpus and direction; 0: no evaluation."""
    watch_activations: bool = False
    """Check every module's output in every step (slow); otherwise only a step that failed is looked into."""
    stop_on_divergence: bool = False
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """torch.compile."""
    model: Model = Model()
    causal: Causal = Causal()
    lora: Lora = Lora()
    loss_scale: LossScale = LossScale()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    every: Every = Every()
    keep: Keep = Keep()

    @model_validator(mode="after")
    def check_together(self) -> Config:
        if not self.evaluate_sentences and (self.keep.best or self.keep.patience):
            raise ValueError("keep.best and keep.patience need dev scores: set evaluate_sentences above 0")
        return self

    def must_not_change(self) -> dict[str, Any]:
        """What a resumed run must share with the run it continues, for its losses to be the same."""
        values: dict[str, Any] = {"optimizer.name": self.optimizer.name}
        for name in ("precision", "seed", "label_smoothing", "ema_decay"):
            values[name] = getattr(self, name)
        for section in ("model", "causal", "lora", "data"):
            for key, value in getattr(self, section).model_dump(mode="json").items():
                values[f"{section}.{key}"] = value
        del values["lora.merge"]  # how checkpoints are written, not what is learnt
        return values


def load_config(path: Path | None, settings: Iterable[str] = (), preset: Path | None = None) -> Config:
    """The preset, then the file, then `settings` ("section.key=value"), each over the one before."""
    values: dict[str, Any] = {}
    for file in (preset, path):
        if file is not None:
            merge(values, read_toml(file))
    for setting in settings:
        merge(values, parse_setting(setting))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        where = " and ".join(str(file) for file in (preset, path) if file) or "the settings"
        raise UsageError(f"{where}: " + "; ".join(describe(item) for item in error.errors())) from error


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error


def parse_setting(setting: str) -> dict[str, Any]:
    """`section.key=value` as TOML has it; a value that is no TOML is a string (precision=fp32)."""
    name, equals, text = setting.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {setting}: write section.key=value, such as --set optimizer.rate=1e-4")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for key in reversed(keys):
        value = {key: value}
    return value


def merge(values: dict[str, Any], other: dict[str, Any]) -> None:
    """Put `other` over `values`, section by section."""
    for key, value in other.items():
        mine = values.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            merge(mine, value)
        else:
            values[key] = value


def describe(error: Any) -> str:
    """A few words for one of pydantic's errors."""
    if not error["loc"]:
        return error["msg"].removeprefix("Value error, ")
    *sections, key = [str(part) for part in error["loc"]]
    name = ".".join([*sections, key])
    if error["type"] != "extra_forbidden":
        return f"{name}: {error['msg']}"
    section: type[BaseModel] = Config
    for part in sections:
        section = section.model_fields[part].annotation  # type: ignore[assignment]
    nearest = difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0)[0]
    return f"unknown key {name}; the nearest is {'.'.join([*sections, nearest])}"
