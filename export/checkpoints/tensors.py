"""Weights that stay on disk until they are asked for, and then pass through memory in pieces."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgemt.errors import EdgemtError

PIECE = 1 << 22  # elements that are in memory at a time

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Stored:
    """One weight that is not read yet; made by `of_file`, `of_tensor`, `joined` or `computed`."""

    shape: tuple[int, ...]
    dtype: str  # as stored: "float16", "bfloat16", "float32"; GGUF's own names: "Q4_K"
    source: str  # "FP32 master in optimizer.bin", "model.safetensors": told by inspect, kept in provenance
    pieces: Callable[[], Iterator[Array]]  # its values in row-major order, flat, at most PIECE at a time
    packed: int = 0  # bytes in the file, where the type does not say

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """As stored."""
        return self.packed or self.size * getattr(torch, self.dtype).itemsize

    def load(self) -> Array:
        """All its values, read now; nothing is kept."""
        array, done = np.empty(self.size, np.float32), 0
        for piece in self.pieces():
            array[done : done + piece.size] = piece
            done += piece.size
        return array.reshape(self.shape)


@dataclass(frozen=True)
class Weights:
    """What a form found: the weights of a model, by the names of its modules."""

    form: str  # "Apex O2"
    tensors: Mapping[str, Stored]
    files: tuple[Path, ...]  # in order: what the SHA-256 covers
    amp: Mapping[str, Any]  # what this form tells of the training (the keys: `facts.py`)
    directory: Path  # where config.json and the tokenizer files are
    config: Mapping[str, Any] | None = None  # where a form has it inside: what config.json would say


class Loaded(Mapping[str, Array]):
    """The same weights as arrays: each is read when it is asked for, and not kept."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.stored = stored

    def __getitem__(self, name: str) -> Array:
        return self.stored[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:
        return name in self.stored


def of_file(file: Path, offset: int, shape: Sequence[int], dtype: torch.dtype, source: str) -> Stored:
    """A weight whose values lie in row-major order at byte `offset` of `file`."""
    count = math.prod(shape)
    return Stored(tuple(shape), dtype_name(dtype), source, lambda: _read(file, offset, count, dtype))


def of_tensor(tensor: torch.Tensor, source: str) -> Stored:
    """A weight that torch holds; of a mapped file only the bytes asked for are read, and none stay mapped."""
    return joined([tensor], tensor.shape, source)


def joined(parts: Sequence[torch.Tensor], shape: Sequence[int], source: str) -> Stored:
    """A weight of `shape` whose values lie one after the other in `parts` (shards of a flat master)."""
    parts = [part.detach() for part in parts]
    places = [_place(part) for part in parts]

    def pieces() -> Iterator[Array]:
        for part, place in zip(parts, places, strict=True):
            if place is not None:
                yield from _read(*place, part.numel(), part.dtype)
            else:
                flat = part.reshape(-1)
                for start in range(0, flat.numel(), PIECE):
                    yield flat[start : start + PIECE].float().numpy()

    return Stored(tuple(shape), dtype_name(parts[0].dtype), source, pieces)


def computed(shape: Sequence[int], dtype: str, source: str, load: Callable[[], Array]) -> Stored:
    """A weight that `load` works out, whole, when it is asked for (a merged adapter)."""
    return Stored(tuple(shape), dtype, source, lambda: iter([load().reshape(-1)]))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _read(file: Path, offset: int, count: int, dtype: torch.dtype) -> Iterator[Array]:
    """`count` values from byte `offset`. Not through a mapping: its pages would count as our memory."""
    with file.open("rb") as stream:
        stream.seek(offset)
        for start in range(0, count, PIECE):
            buffer = bytearray(min(PIECE, count - start) * dtype.itemsize)
            if stream.readinto(buffer) != len(buffer):
                raise EdgemtError(f"{file} ends before its weights do; copy it again")
            yield torch.frombuffer(buffer, dtype=dtype).float().numpy()


def _place(tensor: torch.Tensor) -> tuple[Path, int] | None:
    """The file, and the offset in it, that a contiguous tensor is mapped from; None if it is in memory."""
    maps = Path("/proc/self/maps")
    if not tensor.numel() or not tensor.is_contiguous() or not maps.is_file():
        return None
    address = tensor.data_ptr()
    for line in maps.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        span, _, offset, _, inode, *name = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= address < end:
            if inode == "0" or not name or not os.path.isfile(name[0]):
                return None
            same = os.stat(name[0]).st_ino == int(inode)
            return (Path(name[0]), int(offset, 16) + address - start) if same else None
    return None
