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

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from edgemt.errors import EdgemtError
from edgemt.export.graphs.graphset import Array
from edgemt.export.targets.weight_only import Blocks, fitted, in_blocks, pack

DAMPING = 0.01  # of the mean of H's diagonal, added to it
PANEL = 2048  # rows of H that are added to at a time
TOKENS = 4096  # of which one update of H is made
ROWS = 2048  # of a weight that are rounded at a time: a block of them stays in the cache


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
        square.diagonal().add_(DAMPING * float(diagonal.mean()) or 1.0)  # 1: of a product that saw only zeros
        self.factor: torch.Tensor = torch.linalg.cholesky(square)
        self.roots = self.factor.diagonal().clone()  # of D
        self.factor /= self.roots


def importance(diagonal: Array, block: int) -> NDArray[np.intp]:
    """All columns, blocks kept together, those of the smallest squares first: rounding goes from the back."""
    squares = in_blocks(diagonal[None], block)[0]
    columns = squares.argsort(1, kind="stable") + np.arange(0, squares.size, block)[:, None]
    return columns[squares.sum(1).argsort(kind="stable")].reshape(-1)


def compensated(weight: Array, moments: Moments, bits: int) -> Blocks:
    """The weight [N, K] in blocks of `bits`, so that its products with the texts' tokens stay."""
    parts = [_rounded(weight[start : start + ROWS], moments, bits) for start in range(0, len(weight), ROWS)]
    return Blocks(*(np.concatenate(side) for side in zip(*parts, strict=True)))


def _rounded(weight: Array, moments: Moments, bits: int) -> Blocks:
    half, block, rows = 1 << (bits - 1), moments.block, len(weight)
    padded = np.zeros((moments.padded, rows), np.float32)
    padded[: moments.columns] = weight.T
    true = padded[moments.order]
    wrong, codes = np.zeros_like(true), np.empty_like(true)  # by column, in the order of rounding
    scales = np.empty((moments.padded // block, rows), np.float16)
    factor = moments.factor.numpy()
    for start in range(moments.padded - block, -1, -block):
        end = start + block
        target = true[start:end] - (moments.factor[end:, start:end].T @ torch.from_numpy(wrong[end:])).numpy()
        scale = fitted(target, bits, np.square(moments.roots[start:end].numpy()), axis=0)
        steps = scale.astype(np.float32)
        for k in range(block - 1, -1, -1):
            code = codes[start + k]
            np.clip(np.rint(target[k] / steps), -half, half - 1, out=code)
            np.subtract(code * steps, true[start + k], out=wrong[start + k])
            target[:k] -= factor[start + k, start : start + k, None] * wrong[start + k]
        scales[moments.order[start] // block] = scale
    found = np.empty_like(codes)
    found[moments.order] = codes
    return Blocks(pack(found.T.reshape(rows, -1, block), bits), scales.T)


def output_error(rounded: Array, weight: Array, inputs: Array) -> float:
    """Root mean square of the outputs' error over `inputs` [tokens, K], relative to the outputs'."""
    x = torch.from_numpy(inputs)
    right = x @ torch.from_numpy(weight).T
    wrong = x @ torch.from_numpy(rounded).T - right
    return float(wrong.norm() / right.norm().clamp_min(torch.finfo(torch.float32).tiny))
