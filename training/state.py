"""The state of a run on disk, written so that a crash cannot spoil it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from edgemt.errors import EdgemtError

STATE, PREVIOUS = "state.pt", "state.previous.pt"


def save_state(directory: Path, state: dict) -> None:
    """Write under a temporary name, keep the last as PREVIOUS, then rename: one of them is always whole."""
    temporary = directory / f"{STATE}.tmp"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    current = directory / STATE
    if current.exists():
        os.replace(current, directory / PREVIOUS)
    os.replace(temporary, current)


def load_state(directory: Path) -> dict | None:
    """The newest state that can be read (no code is run from it); None if there is none at all."""
    found = [path for path in (directory / STATE, directory / PREVIOUS) if path.exists()]
    for path in found:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises whatever its bytes happen to hit
            print(f"{path} cannot be read ({type(error).__name__}), trying the one before", flush=True)
    if found:
        raise EdgemtError(f"no state in {directory} can be read; move it away to start anew")
    return None
