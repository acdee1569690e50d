"""From a graph's outputs to what `Want` asks for, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemt.manifest import Model
from edgemt.runtimes.protocol import F32, I32, Step, Want

I64 = NDArray[np.int64]


def step(
    logits: NDArray[Any],
    top: tuple[I64, NDArray[Any]] | None,
    alignment: NDArray[Any] | None,
    want: Want,
    model: Model,
) -> Step:
    """Build the answer from buffers that the next step overwrites (nothing returned shares their memory).

    `logits` [rows, width, V]; `top`: ids and logits [rows, width, ≥ candidates(want, model)] of the graph's
    TopK, which already bars `model.suppress`; without it, or with a shortlist, the best are found here.
    """
    logits = logits.astype(np.float32, copy=False)
    if top is None or want.shortlist is not None:
        ids, values = _from_logits(logits, want, model)
    elif want.suppress is None:
        ids, values = top[0][..., : want.top_k], top[1][..., : want.top_k]
    else:
        ids, values = _without(*top, want.suppress, min(want.top_k, _allowed(want, model)))
    z: Any = 0
    if want.top_k or want.score is not None:
        z = log_z(logits if want.shortlist is None else logits[..., want.shortlist])
    return Step(
        ids.astype(np.int32),
        values - z,
        scored=None if want.score is None else np.take_along_axis(logits, want.score, -1) - z,
        logits=logits.copy() if want.logits else None,
        alignment=alignment.astype(np.float32) if want.alignment and alignment is not None else None,
    )


def candidates(want: Want, model: Model) -> int:
    """How many the graph's TopK must return, so that enough are left when `want.suppress` is taken out."""
    more = 0 if want.suppress is None else len(want.suppress)
    return max(1, min(want.top_k + more, model.vocab_size - len(model.suppress)))


def log_z(logits: F32) -> F32:
    """log Σ exp over the last axis, kept: [..., V] -> [..., 1].

    Here and not in the step graph: there, ReduceLogSumExp took 38 µs of a 153 µs step (INT8, d 256, two
    layers, 10,000 words, one row; 143 of 311 µs for four rows), and greedy search would pay it without any
    use for it, since onnxruntime heeds `only_execute_path_to_fetches` in training builds only. Here it takes
    8 µs a row, and only where a log-probability is wanted.
    """
    top = logits.max(-1, keepdims=True)
    scratch = np.subtract(logits, top)
    np.exp(scratch, out=scratch)
    return np.log(scratch.sum(-1, keepdims=True)) + top


def _allowed(want: Want, model: Model) -> int:
    banned = set(model.suppress) | set([] if want.suppress is None else want.suppress.tolist())
    return model.vocab_size - len(banned)


def _without(ids: I64, values: NDArray[Any], banned: I32, k: int) -> tuple[I64, NDArray[Any]]:
    """The first k of each list (best first) that are not banned."""
    order = np.argsort(np.isin(ids, banned), axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(ids, order, -1), np.take_along_axis(values, order, -1)


def _from_logits(logits: F32, want: Want, model: Model) -> tuple[I64, F32]:
    """The best ids and their logits; only those of `want.shortlist`, where given."""
    banned = [*model.suppress, *([] if want.suppress is None else want.suppress.tolist())]
    columns = np.arange(model.vocab_size) if want.shortlist is None else want.shortlist.astype(np.int64)
    columns = np.setdiff1d(columns, banned)
    scores = logits[..., columns]
    k = min(want.top_k, len(columns))
    some = (
        np.argpartition(scores, len(columns) - k, axis=-1)[..., len(columns) - k :]
        if k < len(columns)
        else None
    )
    some = np.broadcast_to(np.arange(len(columns)), scores.shape) if some is None else some
    order = np.argsort(-np.take_along_axis(scores, some, -1), axis=-1, kind="stable")
    best = np.take_along_axis(some, order, -1)
    return columns[best], np.take_along_axis(scores, best, -1)
