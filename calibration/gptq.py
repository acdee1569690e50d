"""Rounding that makes up for its own errors: GPTQ (Frantar et al. 2023, https://arxiv.org/abs/2210.17323).

Over calibration tokens X, weights wrong by E [N, K] make an output error of tr(E H Eᵀ), where H = XᵀX.
With H = U D Uᵀ, U unit upper triangular, it is Σ_k D_k |E U|²_k: so column k is rounded where the errors of
the columns before it put it, t_k = W_k - Σ_j<k E_j U_jk, which is GPTQ without its inverse (Chee et al. 2023,
QuIP, https://arxiv.org/abs/2307.13304, theorem 6). Here every array is in reverse order, so that U is the
lower triangle that a Cholesky decomposition makes.

Blocks of K are rounded whole, so that each gets its scale from the values it is to hold; those that matter
most come first, before the errors of others have piled up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edgemt.errors import EdgemtError
from edgemt.export.graphs.graphset import Array
from edgemt.export.targets.weight_only import Blocks, fitted, in_blocks, nearest, pack, unpack

DAMPING = 0.01  # of the mean of H's diagonal, added to it
PANEL = 2048  # rows of H that are added to at a time
TOKENS = 4096  # of which one update of H is made


class Rounded(NamedTuple):
    """What `compensated` found. Errors: root of mean squares over the texts' tokens, relative to the outputs."""

    blocks: Blocks
    error: float
    nearest: float  # what rounding to nearest would have given


def second_moments(inputs: Iterable[Array]) -> torch.Tensor:
    """H = XᵀX, f32 [K, K], of inputs [tokens, K]."""
    total: torch.Tensor | None = None
    for x in batches(inputs):
        if total is None:
            total = torch.zeros(x.shape[1], x.shape[1])
        for start in range(0, x.shape[1], PANEL):  # nothing below the diagonal
            total[start : start + PANEL, start:].addmm_(x[:, start : start + PANEL].T, x[:, start:])
    if total is None:
        raise EdgemtError("calibration has no tokens; give a file that has some sentences")
    return total.triu_() + total.triu(1).T


def batches(inputs: Iterable[Array]) -> Iterable[torch.Tensor]:
    waiting: list[Array] = []
    for x in inputs:
        waiting.append(x)
        if sum(map(len, waiting)) >= TOKENS:
            yield torch.from_numpy(np.concatenate(waiting))
            waiting = []
    if waiting:
        yield torch.from_numpy(np.concatenate(waiting))


class Moments:
    """The second moments of what enters a product, taken apart: all that rounding must know of the texts."""

    def __init__(self, moments: torch.Tensor, block: int, name: str = "") -> None:
        """`moments`: H [K, K]. Raises EdgemtError, with the product's `name`, if it is not finite."""
        diagonal = moments.diagonal().numpy()
        if not np.isfinite(diagonal).all():
            raise EdgemtError(f"what enters {name} is not finite in FP32; check the checkpoint's weights")
        self.columns, self.block = len(diagonal), block
        self.order = importance(diagonal, block)
        self.padded = len(self.order)
        inside = torch.from_numpy(self.order < self.columns)
        at = torch.from_numpy(np.minimum(self.order, self.columns - 1))
        square = moments[at][:, at]
        if not inside.all():  # columns that fill up the last block are always zero
            square *= inside[:, None] * inside
        self.damping = DAMPING * float(diagonal.mean()) or 1.0  # 1: of a product that saw only zeros
        square.diagonal().add_(self.damping)
        self.factor: torch.Tensor = torch.linalg.cholesky(square)
        self.roots = self.factor.diagonal().clone()  # of D
        self.factor /= self.roots

    def arranged(self, weight: Array) -> torch.Tensor:
        """A weight [N, K] with its columns in `order`."""
        padded = np.zeros((len(weight), self.padded), np.float32)
        padded[:, : self.columns] = weight
        return torch.from_numpy(padded)[:, torch.from_numpy(self.order)]

    def power(self, weight: torch.Tensor) -> float:
        """Mean square of the outputs, times a constant, of an arranged weight."""
        damped = ((weight @ self.factor) * self.roots).square_().sum()
        return max(0.0, float(damped - self.damping * weight.square().sum()))


def importance(diagonal: Array, block: int) -> NDArray[np.intp]:
    """All columns, blocks kept together, those of the smallest squares first: rounding goes from the back."""
    squares = in_blocks(diagonal[None], block)[0]
    columns = squares.argsort(1, kind="stable") + np.arange(0, squares.size, block)[:, None]
    return columns[squares.sum(1).argsort(kind="stable")].reshape(-1)


def compensated(weight: Array, moments: Moments, bits: int) -> Rounded:
    """The weight [N, K] in blocks of `bits`, so that its products with the texts' tokens stay."""
    half, block = 1 << (bits - 1), moments.block
    true = moments.arranged(weight)
    difference = torch.zeros_like(true)
    codes = np.zeros((len(weight), moments.padded // block, block), np.float32)
    scales = np.zeros(codes.shape[:2], np.float16)
    for start in range(moments.padded - block, -1, -block):
        end = start + block
        target = true[:, start:end] - difference[:, end:] @ moments.factor[end:, start:end]
        importance = np.square(moments.roots[start:end].numpy())
        scale = fitted(target.numpy(), bits, importance)
        steps, inner = torch.from_numpy(scale.astype(np.float32)), moments.factor[start:end, start:end]
        column, wrong = target.T.contiguous(), difference.new_empty(block, len(weight))
        place, within = divmod(moments.order[start:end], block)
        for k in range(block - 1, -1, -1):
            code = torch.clamp(torch.round(column[k] / steps), -half, half - 1)
            wrong[k] = code * steps - true[:, start + k]
            column[:k].addr_(inner[k, :k], wrong[k], alpha=-1)
            codes[:, place[k], within[k]] = code.numpy()
        difference[:, start:end] = wrong.T
        scales[:, place[0]] = scale
    whole = moments.power(true) or 1.0
    plain = nearest("", lambda: weight, bits, block)
    before = moments.arranged(unpack(plain, bits, moments.columns)) - true
    return Rounded(
        Blocks(pack(codes, bits), scales),
        error=math.sqrt(moments.power(difference) / whole),
        nearest=math.sqrt(moments.power(before) / whole),
    )
