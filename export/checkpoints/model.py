"""What tensors a model has, by its config.json: asked of transformers, without memory for any of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.facts import first_line


@dataclass(frozen=True)
class Model:
    """Names and shapes of the state dict; groups of names that are one tensor; names that may be absent."""

    shapes: Mapping[str, tuple[int, ...]]
    tied: tuple[tuple[str, ...], ...]
    computed: frozenset[str]  # by a formula, so that a checkpoint may leave them out
    fixed: frozenset[str]  # those of them that are never trained (positions): the formula is exact


def architecture(config: Mapping[str, Any]) -> str:
    """The first architecture that a config.json names; "?" if it names none."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "?"


def model_of(config: Mapping[str, Any], where: Path) -> Model | None:
    """The model of a config.json at `where`; None if transformers does not know its architecture.

    Raises EdgemtError if no model can be made of it.
    """
    import transformers

    name = architecture(config)
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        return None
    try:
        with torch.device("meta"):
            empty = kind(kind.config_class.from_dict(dict(config)))  # pyright: ignore[reportOptionalMemberAccess]
    except Exception as error:  # whatever a wrong number in the file runs into
        raise EdgemtError(
            f"{where} is not the configuration of a {name} ({first_line(error)}); copy it again"
        ) from None
    empty.tie_weights()
    state = empty.state_dict(keep_vars=True)
    names: dict[int, list[str]] = defaultdict(list)
    for key, tensor in state.items():
        names[id(tensor)].append(key)
    formulas = [re.compile(pattern) for pattern in kind._keys_to_ignore_on_load_missing or ()]
    computed = {key for key in state if any(formula.search(key) for formula in formulas)}
    frozen = {key for key, weight in empty.named_parameters() if not weight.requires_grad}
    return Model(
        {key: tuple(tensor.shape) for key, tensor in state.items()},
        tuple(tuple(group) for group in names.values() if len(group) > 1),
        frozenset(computed),
        frozenset(computed & frozen),
    )
