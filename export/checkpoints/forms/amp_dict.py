"""One file of torch.save: a state dict, or the dict of a hand-written loop under any of its usual keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.forms import apex
from edgemt.export.checkpoints.pickles import is_torch, load_pickle
from edgemt.export.checkpoints.tensors import Stored, Weights, of_tensor

# Likelier first: a dict with several models has the one that is trained under one of the first keys.
MODEL = (
    "model_state_dict", "model", "state_dict", "model_state", "module", "net", "network", "net_state_dict",
    "weights", "params", "student", "generator",
)  # fmt: skip
SCALER = (
    "scaler",
    "grad_scaler",
    "scaler_state_dict",
    "amp_scaler",
    "grad_scaler_state_dict",
    "amp",
    "loss_scaler",
)
STEPS = ("step", "global_step", "steps", "num_updates", "iteration", "iter", "iter_num", "n_iter")
GRAD_SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


def found(path: Path) -> bool:
    return path.is_file() and is_torch(path)


def read(path: Path) -> Weights:
    """The model in a file that torch.save wrote. Raises EdgemtError if there is none in it."""
    loaded = load_pickle(path)
    key, state = model_in(loaded)
    if state is None:
        kind = f"has {', '.join(map(str, loaded))}" if isinstance(loaded, Mapping) else type(loaded).__name__
        raise EdgemtError(
            f"{path} is not a state dict (names to tensors), nor has it one under {', '.join(MODEL[:4])} … "
            f"({kind}); save model.state_dict()"
        )
    source = f"{path.name} ({key})" if key else path.name
    tensors = {name: of_tensor(value, source) for name, value in state.items()}
    if key and apex.written(loaded):
        form, tensors, facts = apex.weights(loaded, tensors, path.name)
        return Weights(form, tensors, (path,), steps(loaded) | facts, path.parent)
    facts = {**steps(loaded), **scaling(loaded)} if key else {}
    form = "torch.amp" if "loss_scale" in facts else "training loop" if key else "state dict"
    return Weights(form, tensors, (path,), facts | masters(tensors, facts), path.parent)


def model_in(loaded: Any) -> tuple[str, dict[str, torch.Tensor] | None]:
    """The key and the tensors of the model; "" if the dict itself is the state dict."""
    if not isinstance(loaded, Mapping):
        return "", None
    for key in MODEL:
        if state := state_dict(loaded.get(key)):
            return key, state
    return "", state_dict(loaded)


def state_dict(value: Any) -> dict[str, torch.Tensor] | None:
    """The tensors of a state dict, without the extra states of modules; None if `value` is something else."""
    if not isinstance(value, Mapping):
        return None
    tensors = {name: item for name, item in value.items() if isinstance(item, torch.Tensor)}
    others = [name for name in value if name not in tensors and not str(name).endswith("_extra_state")]
    return tensors if tensors and not others and all(isinstance(name, str) for name in tensors) else None


def steps(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """The last step, and how often the optimizer was stepped: less, where steps were skipped."""
    facts = {"steps": number(next((loaded[key] for key in STEPS if key in loaded), None))}
    facts["epochs"] = number(loaded.get("epoch"))
    for part in loaded.values():
        if (
            isinstance(part, Mapping)
            and isinstance(states := part.get("state"), Mapping)
            and "param_groups" in part
        ):
            counts = [number(state.get("step")) for state in states.values() if isinstance(state, Mapping)]
            facts["optimizer_steps"] = max((count for count in counts if count is not None), default=None)
    return {key: value for key, value in facts.items() if value is not None}


def scaling(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """The state of torch.amp.GradScaler; nothing if it was not used, or was disabled."""
    for key in SCALER:
        scaler = loaded.get(key)
        if isinstance(scaler, Mapping) and scaler.keys() >= GRAD_SCALER:
            return {
                "precision": "fp16-o1",
                "loss_scale": float(scaler["scale"]),
                "steps_since_overflow": number(scaler["_growth_tracker"]),
                "written_by": "torch.amp",
            }
    return {}


def masters(tensors: Mapping[str, Stored], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the weights themselves are the FP32 masters, as they are under autocast."""
    dtypes = {stored.dtype for stored in tensors.values() if len(stored.shape) > 1}
    if dtypes == {"float32"}:
        return {"masters": "the model's own FP32 weights"} if facts.get("precision") else {}
    if dtypes & {"float16", "bfloat16"}:
        rounded = "FP16" if "float16" in dtypes else "BF16"
        return {"masters": f"none found: the weights are rounded to {rounded}"}
    return {}


def number(value: Any) -> int | None:
    """A count, also in a tensor of one element."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
