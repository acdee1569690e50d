"""What NVIDIA Apex leaves in a user's dict: amp's loss scalers, and FP32 masters without names.

As its sources say, up to the removal of amp in 2025:
- `amp.state_dict()` is {"loss_scaler0": {"loss_scale", "unskipped"}, …}, one a loss, for O1 and O2 alike;
- O1 keeps the model in FP32;
- at O2 the model is FP16, and `model.state_dict()` gives its weights as FP32, rounded (O2StateDictHook in
  apex/amp/_initialize.py; FP16 in the first versions). The masters are the optimizer's parameters, which
  `optimizer.state_dict()` does not save: they are in a checkpoint only if the loop put
  `amp.master_params(optimizer)` there, as NVIDIA's BERT does under "master params";
- `FP16_Optimizer.state_dict()` (apex/fp16_utils) has them in "fp32_from_fp16", one list a parameter group;
- that of apex/contrib/optimizers has them in "fp32_groups_flat", one flat tensor a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch

from edgemt.export.checkpoints.masters import match, match_flat
from edgemt.export.checkpoints.pickles import Inert
from edgemt.export.checkpoints.rounding import half
from edgemt.export.checkpoints.tensors import Stored

LISTS = ("master params", "master_params", "master_weights", "fp32_from_fp16")
FLAT = "fp32_groups_flat"
SCALER = "loss_scaler0"


def written(loaded: Mapping[str, Any]) -> bool:
    """Whether Apex was at work, by the keys of the dict and of the dicts in it."""
    return any(key in part for part in _parts(loaded) for key in (SCALER, FLAT, *LISTS))


def weights(
    loaded: Mapping[str, Any], model: Mapping[str, Stored], file: str
) -> tuple[str, dict[str, Stored], dict[str, Any]]:
    """The form's name, the weights with FP32 masters wherever there are any, and the facts of training."""
    facts, masters = {"written_by": "Apex", **scale(loaded)}, {}
    for part in _parts(loaded):
        for key in LISTS:
            if groups := _groups(part.get(key), _sizes(loaded)):
                masters |= match(model, groups, f"FP32 master in {file} ({key})")
        if isinstance(part.get(FLAT), list):
            masters |= match_flat(model, part[FLAT], f"FP32 master in {file} ({FLAT})")
    if masters:
        facts |= {
            "precision": "fp16-o2",
            "masters": f"FP32 masters of {len({id(found) for found in masters.values()})} weights",
        }
        return "Apex O2 with masters", {**model, **masters}, facts
    scaled = facts.get("loss_scale") != 1.0  # O3 (pure FP16) and O0 (FP32) have no scaling by default
    if all(_is_half(stored) for stored in model.values() if len(stored.shape) > 1):
        facts["masters"] = "none found: the weights are rounded to FP16"
        form, precision = ("O2", "fp16-o2") if scaled else ("O2 or O3", None)
        form += " without masters"
    else:
        facts["masters"] = "the model's own FP32 weights"
        form, precision = ("O1", "fp16-o1") if scaled else ("O0 or O1", None)
    return f"Apex {form}", dict(model), facts | ({"precision": precision} if precision else {})


def scale(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of loss scaling, from whichever of the three scalers left it."""
    facts: dict[str, Any] = {}
    for part in _parts(loaded):
        if isinstance(scaler := part.get(SCALER), Mapping):
            facts |= {"loss_scale": scaler.get("loss_scale"), "steps_since_overflow": scaler.get("unskipped")}
        elif isinstance(scaler := part.get("loss_scaler"), Inert):
            facts |= {"loss_scale": scaler.get("cur_scale"), "steps": scaler.get("cur_iter")}
        elif FLAT in part:
            facts |= {"loss_scale": part.get("cur_scale"), "steps": part.get("cur_iter")}
    return {key: value for key, value in facts.items() if isinstance(value, int | float)}


def _parts(loaded: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield loaded
    yield from (part for part in loaded.values() if isinstance(part, Mapping))


def _sizes(loaded: Mapping[str, Any]) -> list[int]:
    """How many parameters are in each group of the optimizer, if its state was saved too."""
    groups = (part["param_groups"] for part in _parts(loaded) if isinstance(part.get("param_groups"), list))
    return [len(group["params"]) for group in next(groups, [])]


def _groups(value: Any, sizes: list[int]) -> list[list[torch.Tensor]]:
    """Lists of tensors, one a parameter group; [] if that is not what `value` is."""
    if not isinstance(value, list) or not value:
        return []
    groups = value if isinstance(value[0], list) else [value]
    if len(groups) == 1 and sum(sizes) == len(value):
        items = iter(value)  # the list of amp.master_params: all groups, one after the other
        groups = [list(islice(items, size)) for size in sizes]
    tensors = all(
        isinstance(group, list) and group and all(isinstance(item, torch.Tensor) for item in group)
        for group in groups
    )
    return groups if tensors else []


def _is_half(stored: Stored) -> bool:
    return all((half(piece) == piece).all() for piece in stored.pieces())
