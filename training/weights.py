"""Weights by name: into a model, and out of it as a checkpoint has them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgemt.errors import UsageError


def load_weights(model: nn.Module, tensors: Mapping[str, np.ndarray], where: Path) -> None:
    """Copy a checkpoint's tensors into the model, one at a time.

    A shared tensor may come under any of its names. Raises UsageError with all names that do not fit, before
    anything is copied but tensors of the same name and shape.
    """
    ours = model.state_dict()
    unknown = sorted(set(tensors) - set(ours))
    missing = sorted(min(names) for names in shared_names(model) if not names & set(tensors))
    computed = [
        re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or []
    ]
    missing = [name for name in missing if not any(pattern.search(name) for pattern in computed)]
    shapes = []
    with torch.no_grad():
        for name in sorted(set(tensors) & set(ours)):
            tensor = torch.from_numpy(np.ascontiguousarray(tensors[name]))
            if tensor.shape == ours[name].shape:
                ours[name].copy_(tensor)
            else:
                shapes.append(f"{name} is {list(tensor.shape)}, not {list(ours[name].shape)}")
    problems = {"unknown": unknown, "missing": missing, "of another shape": shapes}
    found = [
        f"{title}: {', '.join(names[:5])}{' …' * (len(names) > 5)}"
        for title, names in problems.items()
        if names
    ]
    if found:
        raise UsageError(
            f"{where} does not fit the model ({'; '.join(found)}): give the config.json and the weights of "
            "one model"
        )


def shared_names(model: nn.Module) -> list[set[str]]:
    """The names in the state dict of each tensor; more than one where modules share it."""
    names: dict[int, set[str]] = defaultdict(set)
    for name, tensor in model.state_dict(keep_vars=True).items():
        names[id(tensor)].add(name)
    return list(names.values())


def unshared(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the state dict once, under the name of the module it was made in: FP32, on the CPU."""
    first = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    return {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name in first
    }
