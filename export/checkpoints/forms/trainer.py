"""What the Trainer of transformers leaves in `checkpoint-N`, if neither DeepSpeed nor peft was with it.

    model.safetensors (or its shards, or pytorch_model.bin), config.json, trainer_state.json, optimizer.pt,
    scheduler.pt, scaler.pt (FP16 only); training_args.bin and rng_state.pth, which are never read

With `bf16=True` or `fp16=True` it trains by autocast, so the weights are saved in FP32 and are the masters. A
model that was loaded in half precision is saved in half precision, and no masters exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.facts import read_json
from edgemt.export.checkpoints.forms import accelerate
from edgemt.export.checkpoints.rounding import same
from edgemt.export.checkpoints.tensors import Stored, Weights

STATE = "trainer_state.json"
SMALL, FEW = 1 << 16, 8  # what is compared with weights that lie beside masters: enough to know another step


def found(path: Path) -> bool:
    return (path / STATE).is_file()


def read(path: Path) -> Weights:
    """The weights of a `checkpoint-N`. Raises EdgemtError if there are none."""
    weights = accelerate.model_in(path)
    if weights is None:
        raise EdgemtError(
            f"{path} has the Trainer's state but no weights; give the checkpoint with its model.safetensors"
        )
    amp = {**accelerate.precision(weights.tensors, path / "scaler.pt"), **facts(path)}
    if (path / "latest").is_file():  # of DeepSpeed, whose folder with the masters is no longer there
        amp["note"] = (
            "the FP32 masters of DeepSpeed, which `latest` names, are gone: these are the model's weights"
        )
    return Weights("Trainer checkpoint", weights.tensors, weights.files, amp, path)


def facts(path: Path) -> dict[str, Any]:
    """What trainer_state.json tells, if `path` has one."""
    if not found(path):
        return {}
    steps = read_json(path / STATE).get("global_step")
    return {"written_by": "transformers Trainer", **({} if steps is None else {"steps": steps})}


def beside(path: Path, masters: Mapping[str, Stored], steps: int | None) -> dict[str, str]:
    """What is to be said of `path`, which has `masters` (of `steps` steps) in a folder of its own."""
    trainer, said = facts(path).get("steps"), {}
    if None not in (trainer, steps) and trainer != steps:
        said["note"] = f"{STATE} is of step {trainer}, the masters are of step {steps}, and were taken"
    weights = accelerate.model_in(path)
    if weights is None:
        return said
    kinds = "/".join(sorted({stored.dtype for stored in weights.tensors.values()}))
    names = ", ".join(file.name for file in weights.files)
    why = "it is of another step" if _differ(weights.tensors, masters) else "the FP32 masters are preferred"
    return {**said, "left_aside": f"{names} ({kinds}): {why}"}


def _differ(weights: Mapping[str, Stored], masters: Mapping[str, Stored]) -> bool:
    """Whether `weights` are not the rounded `masters`, by a few of the smaller ones."""
    common = [name for name in weights if name in masters and masters[name].size <= SMALL]
    return any(not same(weights[name], masters[name]) for name in common[:FEW])
