"""Torch pickles, read as data: no code runs, and large tensors stay in the file until they are used."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.facts import first_line

# Records that trainers leave in their files. They are read as `Inert`, so that what they are does not matter.
INERT = (
    "accelerate.",
    "apex.",
    "argparse.Namespace",
    "collections.defaultdict",
    "datetime.",
    "deepspeed.",
    "numpy.",
    "omegaconf.",
    "pathlib.",
    "torch.distributed.",
    "torch.optim.",
    "transformers.",
)
CULPRIT = re.compile(r"GLOBAL\s+([\w.]+)")  # in what torch says of a class that it does not allow
ZIP = b"PK\3\4"


class Inert:
    """Stands for an object of a class that is not imported: holds what the file says of it and runs nothing.

    `name` is the class, `arguments` what it was made with, `state` the attributes that it had.
    """

    name: str
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **keywords: Any) -> Inert:
        self = super().__new__(cls)
        self.arguments, self.state = (*arguments, *keywords.values()), {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute `key` that the object had."""
        return self.state.get(key, default) if isinstance(self.state, Mapping) else default


def load_pickle(path: Path, inert: Iterable[str] = ()) -> Any:
    """What `torch.save` wrote to `path`, with tensors on the CPU, mapped from the file where it is a zip.

    Objects of known trainers' records (`INERT`, and the module or class prefixes in `inert`) come back as
    `Inert`. Raises EdgemtError for any other class, and for a file that is damaged.
    """
    prefixes, stands = (*INERT, *inert), {}
    while True:
        try:
            allowed = torch.serialization.safe_globals([(stand, name) for name, stand in stands.items()])
            with (
                allowed,
                warnings.catch_warnings(action="ignore"),
            ):  # what torch warns of, we refuse or can read
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip(path))
        except pickle.UnpicklingError as error:
            named = CULPRIT.search(str(error))
            culprit = named[1] if named else ""
            if not culprit.startswith(prefixes) or culprit in stands:
                raise EdgemtError(_refusal(path, culprit)) from None
            stands[culprit] = type("Inert", (Inert,), {"name": culprit})
        except Exception as error:  # a damaged file raises whatever its bytes happen to hit
            if "TorchScript" in str(error):
                raise EdgemtError(
                    f"{path} is a compiled TorchScript program; save model.state_dict() instead"
                ) from None
            raise EdgemtError(
                f"{path} is truncated or damaged ({first_line(error)}); copy it again"
            ) from None


def _refusal(path: Path, culprit: str) -> str:
    if not culprit:
        return f"{path} is damaged, or was not written by torch.save; copy it again, or save it with torch"
    return (
        f"{path} was refused, because it holds more than tensors ({culprit}) and could run code; "
        "write its state dict again with safetensors.torch.save_file where you trust it"
    )


def is_torch(path: Path) -> bool:
    """Whether it looks like a pickle, in a zip or by itself (as torch wrote it before 1.6)."""
    with path.open("rb") as stream:
        head = stream.read(4)
    return head == ZIP or head[:1] == b"\x80"


def is_zip(path: Path) -> bool:
    """Whether torch wrote it as a zip (1.6 and later), whose tensors can be mapped."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == ZIP
    except OSError:
        return False
