"""LoRA adapters as peft writes them, merged into the weights of their base: W + scaling · B A, in FP32.

`adapter_config.json` tells rank, alpha and what else was trained. `adapter_model.safetensors` (or `.bin`) has
`base_model.model.<module>.lora_A.weight` [rank, in] and `lora_B.weight` [out, rank], and biases and modules
that were trained whole. Under DeepSpeed the FP32 masters of all these lie in its shards, and at stage 3
without `stage3_gather_16bit_weights_on_model_save` only there: the Trainer's adapter file then has no tensor.

DoRA (arXiv 2402.09353) scales each merged row to its trained magnitude m: m (W + ΔW) / ‖W + ΔW‖.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemt.errors import EdgemtError, UsageError
from edgemt.export.checkpoints.facts import listing, read_json
from edgemt.export.checkpoints.forms import accelerate, deepspeed, edgemt, trainer, transformers
from edgemt.export.checkpoints.model import model_of
from edgemt.export.checkpoints.names import plain
from edgemt.export.checkpoints.tensors import Array, Stored, Weights, computed

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")
MERGE = "merge it where it was trained (model.merge_and_unload().save_pretrained(DIR)), and give that"
# Keys of adapter_config.json that are read here, or that change nothing in what is merged. If any other is
# set, the adapter is of a kind that the formulas above are not.
KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
STARTS = (
    True,
    False,
    "gaussian",
    "eva",
    "orthogonal",
)  # of init_lora_weights: the others change W before training
PART = re.compile(r"\.(lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.(weight|bias))?$")
ADAPTER_NAME = re.compile(
    r"(\.(?:lora_\w+|modules_to_save))\.(?!(?:weight|bias)$)[^.]+"
)  # in a running model


@dataclass(frozen=True)
class Matrix:
    """What a weight [out, in] was adapted by; `lying`: it is stored [in, out], like embeddings and Conv1D."""

    down: Stored  # A, [rank, in]
    up: Stored  # B, [out, rank]
    scaling: float
    lying: bool
    magnitude: Stored | None  # of DoRA, [out]

    @property
    def shape(self) -> tuple[int, ...]:
        shape = (self.up.shape[0], self.down.shape[1])
        return shape[::-1] if self.lying else shape

    def merged(self, weight: Stored) -> Array:
        delta = np.multiply(self.up.load() @ self.down.load(), self.scaling, dtype=np.float32)
        merged = weight.load() + (delta.T if self.lying else delta)
        if self.magnitude is None:
            return merged
        axis = 0 if self.lying else 1
        norm = np.sqrt(np.square(merged).sum(axis, keepdims=True))
        return np.multiply(merged, self.magnitude.load().reshape(norm.shape) / norm, dtype=np.float32)


@dataclass(frozen=True)
class Bias:
    """What a bias [out] was adapted by (`lora_bias`)."""

    up: Stored
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.up.shape

    def merged(self, bias: Stored) -> Array:
        return bias.load() + np.multiply(self.up.load(), self.scaling, dtype=np.float32)


def found(path: Path) -> bool:
    """A folder that peft wrote."""
    return (path / CONFIG).is_file()


def base_of(path: Path, given: Path | None) -> Path:
    """The base's folder or file: `given`, or what the adapter names, seen from its folder or from here."""
    if given is not None:
        return given
    named = str(read_json(path / CONFIG).get("base_model_name_or_path") or "")
    place = next((place for place in (path / named, Path(named)) if named and place.exists()), None)
    if place is None:
        raise UsageError(
            f"the adapter {path} was trained on {named or 'a base that it does not name'}, which is not on "
            "this machine; name the folder of that model with --base"
        )
    return place


def read(path: Path, base: Weights) -> Weights:
    """The weights of `base` with the adapter at `path` merged into them, each when it is loaded.

    Raises EdgemtError for what cannot be merged exactly, and for a base that is not the adapter's.
    """
    config = read_json(path / CONFIG)
    _check(path, config)
    adapter = _adapter(path)
    whole, changes = _sort(path, adapter.tensors, config)
    tensors = plain(base.tensors, {**whole, **changes})
    _check_ties(path, base.directory, {*whole, *changes})
    absent = sorted({*whole, *changes} - tensors.keys())
    other = [
        name for name, change in changes.items() if name in tensors and tensors[name].shape != change.shape
    ]
    if absent or other:
        raise EdgemtError(
            f"the adapter {path} changes {listing(absent or other)}, which its base in {base.directory} "
            f"{'does not have' if absent else 'has in another shape'}; name the folder of the model that it "
            "was trained on with --base"
        )
    merged = {name: _computed(tensors[name], change) for name, change in changes.items()}
    amp = {**adapter.amp, "base": base.form, **({"base_training": dict(base.amp)} if base.amp else {})}
    form, files = f"{adapter.form} on {base.form}", (*base.files, *adapter.files)
    return Weights(form, {**tensors, **whole, **merged}, files, amp, base.directory)


def _computed(weight: Stored, change: Matrix | Bias) -> Stored:
    source = f"{weight.source} + {change.up.source}"
    return computed(weight.shape, weight.dtype, source, lambda: change.merged(weight))


def _check(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is not merged exactly by the two formulas."""
    odd = sorted(key for key, value in config.items() if value and key not in KNOWN)
    start = config.get("init_lora_weights", True)
    if config.get("peft_type") != "LORA":
        what = f"is of the kind {config.get('peft_type')}, not LORA"
    elif odd:
        what = f"uses {listing(odd)}, which edgemt does not merge"
    elif start not in STARTS:
        what = f"was started with {start}, which changed the base's weights too"
    else:
        return
    raise EdgemtError(f"the adapter {path} {what}; {MERGE}")


def _adapter(path: Path) -> Weights:
    """The adapter's tensors under the names of the model's modules."""
    file = next((path / name for name in FILES if (path / name).is_file()), None)
    tensors = dict(transformers.tensors_of(file)) if file else {}
    if deepspeed.holds_masters(path):
        weights = deepspeed.read_masters(path)
        aside = (
            f"{file.name}: {'the FP32 masters are preferred' if tensors else 'it is empty'}" if file else ""
        )
        amp = {**weights.amp, **({"left_aside": aside} if aside else {})}
        return Weights(f"LoRA ({weights.form})", _named(path, weights.tensors), weights.files, amp, path)
    if file is None:
        raise EdgemtError(
            f"{path} lacks {' or '.join(FILES)}, the weights of its {CONFIG}; copy the whole folder"
        )
    if not tensors:
        raise EdgemtError(
            f"{file} holds no tensor, as the Trainer writes it under ZeRO-3: the adapter is in the "
            "global_step folder beside it, which `latest` names; copy those too"
        )
    record = path / edgemt.RECORD
    amp = {
        **accelerate.precision(tensors, path / "scaler.pt"),
        **trainer.facts(path),
        **({"written_by": "edgemt train", **read_json(record)} if record.is_file() else {}),
    }
    return Weights("LoRA", _named(path, tensors), (file,), amp, path)


def _named(path: Path, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Without what peft puts around the modules of a model."""
    named = {}
    for name, stored in tensors.items():
        short = ADAPTER_NAME.sub(r"\1", name.removeprefix("base_model.model."))
        short = short.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        if short in named:
            raise EdgemtError(f"{path} holds {short} of several adapters; save one of them")
        named[short] = stored
    return named


def _sort(
    path: Path, tensors: Mapping[str, Stored], config: Mapping[str, Any]
) -> tuple[dict[str, Stored], dict[str, Matrix | Bias]]:
    """Tensors that replace the base's, and what is added to the base's, by the names of the base's."""
    whole: dict[str, Stored] = {}
    parts: dict[str, dict[str, Stored]] = defaultdict(dict)
    for name, stored in tensors.items():
        if part := PART.search(name):
            parts[name[: part.start()]][part[1] + (".bias" if part[2] == "bias" else "")] = stored
        else:
            whole[name] = stored
    if config.get("bias", "none") != "none" and not any(name.endswith(".bias") for name in whole):
        raise EdgemtError(
            f"the adapter {path} trained biases (bias={config['bias']}) but holds none; {MERGE}"
        )
    changes: dict[str, Matrix | Bias] = {}
    for module, part in parts.items():
        kind = "lora_embedding_" if "lora_embedding_A" in part else "lora_"
        down, up, magnitude = part.get(f"{kind}A"), part.get(f"{kind}B"), part.get("lora_magnitude_vector")
        if down is None or up is None or (magnitude is None) == bool(config.get("use_dora")):
            raise EdgemtError(f"the adapter {path} lacks a part of {module}; copy the whole adapter")
        if len(down.shape) != 2 or len(up.shape) != 2 or (magnitude and kind != "lora_"):
            raise EdgemtError(f"the adapter {path} adapts {module} otherwise than a matrix is; {MERGE}")
        scaling = _scaling(module, down.shape[0], config)
        lying = kind != "lora_" or bool(config.get("fan_in_fan_out"))
        changes[f"{module}.weight"] = Matrix(down, up, scaling, lying, magnitude)
        if "lora_B.bias" in part:
            changes[f"{module}.bias"] = Bias(part["lora_B.bias"], scaling)
    return whole, changes


def _scaling(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / rank, or alpha / √rank where it is rank-stabilised; alpha may be the module's own."""
    patterns = config.get("alpha_pattern") or {}
    own = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(own, config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_ties(path: Path, base: Path, changed: Iterable[str]) -> None:
    """Refuse to change one of several weights that the model ties: merged, they would no longer be one."""
    model = (
        model_of(read_json(base / "config.json"), base / "config.json")
        if (base / "config.json").is_file()
        else None
    )
    tied = {name for group in (model.tied if model else ()) for name in group}
    if both := sorted(tied.intersection(changed)):
        raise EdgemtError(
            f"the adapter {path} changes {listing(both)}, which the model ties to another weight; untie them "
            f"(tie_word_embeddings false) and {MERGE}"
        )
