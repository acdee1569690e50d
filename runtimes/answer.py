"""From a graph's outputs to what `Want` asks for, in numpy."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemt.manifest import Model
from edgemt.runtimes.protocol import F32, I32, Step, Want

I64 = NDArray[np.int64]


def needs(want: Want, outputs: Collection[str]) -> frozenset[str]:
    """The outputs of the step graph, of those it has, that an answer to `want` is built from."""
    if "logp" in outputs and want.shortlist is None:
        names = {"top_ids", "top_values"} | ({"logp"} if want.score is not None else set())
    else:
        names = {"logits"}
    return frozenset(outputs) & (names | {name for name in ("logits", "alignment") if getattr(want, name)})


def step(found: Mapping[str, NDArray[Any]], want: Want, model: Model) -> Step:
    """Build the answer from buffers that the next step overwrites (nothing returned shares their memory).

    `found` holds what `needs` named: logits [rows, width, V], log-probabilities logp of that shape, and their
    best, `model.suppress` barred: top_ids and top_values [rows, width, ≥ candidates(want, model)]. A graph
    without logp, or a shortlist, leaves the best and the probabilities to numpy.
    """
    logits, alignment = found.get("logits"), found.get("alignment")
    if "top_ids" not in found:
        assert logits is not None
        logp = logits.astype(np.float32, copy=False)
        logp = logp - log_z(logp if want.shortlist is None else logp[..., want.shortlist])
        ids, values = _best(logp, want, model)
    else:
        logp, ids, values = found.get("logp"), found["top_ids"], found["top_values"]
        if want.suppress is not None:
            ids, values = _without(ids, values, want.suppress, min(want.top_k, _allowed(want, model)))
        ids, values = ids[..., : want.top_k], values[..., : want.top_k]
    scored = None
    if want.score is not None and logp is not None:
        scored = np.take_along_axis(logp, want.score, -1)
    return Step(
        ids.astype(np.int32),
        values.copy(),
        scored=scored,
        logits=logits.astype(np.float32) if want.logits and logits is not None else None,
        alignment=alignment.astype(np.float32) if want.alignment and alignment is not None else None,
    )


def candidates(want: Want, model: Model) -> int:
    """How many the graph's TopK must return, so that enough are left when `want.suppress` is taken out."""
    more = 0 if want.suppress is None else len(want.suppress)
    return max(1, min(want.top_k + more, model.vocab_size - len(model.suppress)))


def log_z(logits: F32) -> F32:
    """log Σ exp over the last axis, kept: [..., V] -> [..., 1]."""
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


def _best(logp: F32, want: Want, model: Model) -> tuple[I64, F32]:
    """The best ids and their log-probabilities; only those of `want.shortlist`, where given."""
    banned = [*model.suppress, *([] if want.suppress is None else want.suppress.tolist())]
    columns = np.arange(model.vocab_size) if want.shortlist is None else want.shortlist.astype(np.int64)
    columns = np.setdiff1d(columns, banned)
    scores = logp[..., columns]
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
