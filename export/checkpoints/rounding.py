"""FP32 values as half-precision types hold them, and fingerprints that prove what became of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch

from edgemt.export.checkpoints.tensors import Array, Stored


def half(array: Array) -> Array:
    """Rounded to FP16; what is above 65504 becomes infinite."""
    return torch.from_numpy(array).half().float().numpy()


def brain(array: Array) -> Array:
    """Rounded to BF16."""
    return torch.from_numpy(array).bfloat16().float().numpy()


def unchanged(array: Array) -> Array:
    return array


ROUND: dict[str, Callable[[Array], Array]] = {"float16": half, "bfloat16": brain}


def fingerprint(stored: Stored, rounded: Callable[[Array], Array] = unchanged) -> bytes:
    """A hash of a weight's values, once rounded; equal for equal values, however they are stored."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in stored.pieces():
        values = rounded(piece)
        digest.update(np.where(np.isnan(values), np.float32(np.nan), values).tobytes())
    return digest.digest()


def same(one: Stored, other: Stored) -> bool:
    """Whether two copies are of one tensor; the coarser of them may have been rounded from the other."""
    coarse = next((stored.dtype for stored in (one, other) if stored.dtype in ROUND), "")
    rounded = ROUND.get(coarse, unchanged)
    return one.shape == other.shape and fingerprint(one, rounded) == fingerprint(other, rounded)
