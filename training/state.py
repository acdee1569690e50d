"""The state of a run on disk, written so that a crash cannot spoil it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from edgemt.errors import EdgemtError
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
                f"{path} was written by another version of edgemt: go on with that version, or write a checkpoint "
                "with it and start a new run from that with --init"
            )
        return state
    if found:
        raise EdgemtError(f"no state in {directory} can be read; move it away to start anew")
    return None


def size(value: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(size, value.values()))
    return sum(map(size, value)) if isinstance(value, list | tuple) else 0
