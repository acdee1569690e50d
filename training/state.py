"""The state of a run on disk, written so that a crash cannot spoil it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgemt.errors import EdgemtError, UsageError
from edgemt.training.files import replacing

STATE, PREVIOUS = "state.pt", "state.previous.pt"
FORM = 2


def save_state(directory: Path, state: dict[str, Any]) -> None:
    """Write under a temporary name, keep the last as PREVIOUS, then rename: one of them is always whole."""
    current = directory / STATE
    with replacing(current, size(state)) as temporary:
        with temporary.open("wb") as file:
            torch.save({"form": FORM, **state}, file)
        if current.exists():
            os.replace(current, directory / PREVIOUS)


def load_state(directory: Path) -> dict[str, Any] | None:
    """The newest state that can be read (no code is run from it); None if there is none at all."""
    found = [path for path in (directory / STATE, directory / PREVIOUS) if path.exists()]
    for path in found:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises whatever its bytes happen to hit
            print(f"{path} cannot be read ({type(error).__name__}), trying the one before", flush=True)
            continue
        if state.get("form") != FORM:
            raise EdgemtError(
                f"{path} was written by another version of edgemt: go on with that version, or write a "
                "checkpoint with it and start a new run from that with --init"
            )
        return state
    if found:
        raise EdgemtError(f"no state in {directory} can be read; move it away to start anew")
    return None


def check_settings(directory: Path, state: dict[str, Any], settings: dict[str, Any]) -> None:
    """Is this the state of a run with these settings? Raises UsageError if not."""
    changed = [key for key, value in settings.items() if state["config"].get(key) != value]
    if changed:
        raise UsageError(
            f"{changed[0]} = {settings[changed[0]]!r} differs from the run in {directory}, which has "
            f"{state['config'].get(changed[0])!r}: change it back, or use a new folder"
        )


def check_model(directory: Path, state: dict[str, Any], model: nn.Module) -> None:
    """Is this the state of such a model? Raises UsageError if not."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, tensor in state["model"].items():
        if shapes.get(name) != list(tensor.shape):
            raise UsageError(
                f"the state in {directory} is of another model: {name} is {list(tensor.shape)} there and "
                f"{shapes.get(name, 'absent')} here; put the right state back, or use a new folder"
            )


def size(value: Any) -> int:
    """Bytes of all tensors in nested containers, those that share memory once."""
    return sum({tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors(value)}.values())


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)
