"""The tokens of one answer as they come: greedy, with a draft or without, or sampled.

Beams, batches and constraints: search.py.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgemt.errors import UsageError
from edgemt.manifest import Model
from edgemt.prefixes import common
from edgemt.runtimes.protocol import F32, Session, Want

if TYPE_CHECKING:
    from edgemt.drafts import Draft

ONE = np.ones(1, np.int32)
BEST, LOGITS = Want(last=True), Want(last=True, logits=True)


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn, by the processors of transformers' `generate` and in their order.

    The defaults are those of HY-MT1.5. Without a `seed` each answer is another one; with it each is the same.
    Raises UsageError for numbers out of range.
    """

    temperature: float = 0.7
    top_k: int = 20  # the most likely tokens that it is drawn from; 0: all
    top_p: float = 0.6  # the least number of the most likely tokens that have this probability together
    repetition_penalty: float = 1.05  # against tokens of the prompt and of the answer (arXiv:1909.05858)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, fits, range_ in (
            ("temperature", 0 < self.temperature < np.inf, "above 0"),
            ("top_k", self.top_k >= 0, "of 0 (all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and up to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < np.inf, "above 0"),
            ("seed", self.seed is None or self.seed >= 0, "of 0 or more"),
        ):
            if not fits:
                raise UsageError(f"sampling with {name} {getattr(self, name)}; give a number {range_}")


@dataclass
class DraftStats:
    """What drafts were good for."""

    steps: int = 0  # of the model
    proposed: int = 0  # tokens of the drafts
    accepted: int = 0  # of these, those that the model said too
    tokens: int = 0  # of the answers

    def add(self, other: DraftStats) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def generate(
    session: Session,
    tokens_so_far: Sequence[int],
    model: Model,
    limit: int,
    *,
    sampling: Sampling | None = None,
    draft: Draft | None = None,
    stats: DraftStats | None = None,
) -> Generator[int]:
    """Up to `limit` new tokens of a session of one row, without the one that ends the answer.

    `tokens_so_far` are the prompt's, of which the session has all but the last. A `draft` changes nothing of
    what greedy search says; with `sampling` it is not asked. Session and draft are closed at the end, and
    when the iterator is closed before.
    """
    history = list(tokens_so_far)
    try:
        if draft is None or sampling is not None:
            yield from _plain(session, history, model, limit, sampling)
        else:
            yield from _drafted(session, history, model, limit, draft, stats or DraftStats())
    finally:
        session.close()
        if draft is not None:
            draft.close()


def _plain(
    session: Session, history: list[int], model: Model, limit: int, sampling: Sampling | None
) -> Generator[int]:
    draw = None if sampling is None else np.random.default_rng(sampling.seed)
    for _ in range(limit):
        step = session.step(np.array([history[-1:]], np.int32), ONE, LOGITS if sampling else BEST)
        if sampling is None or draw is None:
            token = int(step.ids[0, 0, 0])
        else:
            assert step.logits is not None
            token = drawn(step.logits[0, 0], history, model, sampling, draw)
        if token == model.eos_id:
            return
        history.append(token)
        yield token


def _drafted(
    session: Session, history: list[int], model: Model, limit: int, draft: Draft, stats: DraftStats
) -> Generator[int]:
    """Greedy search, in steps that also read what the draft proposes.

    Where a token is ahead of the next by less than the draft's margin, rounding could decide. It is then said
    by steps of one token, all the way from the last that was said so: `alone` tokens were.
    """
    want, left, alone = Want(top_k=2 if draft.margin else 1), limit, 0
    first, fresh, unsure = True, True, False
    while left > 0:
        began, asked = perf_counter(), 0
        if unsure:
            session.rewind(ONE * alone)
            for token in history[alone:-1]:
                session.step(np.array([[token]], np.int32), ONE, BEST)
            alone = len(history) - 1
        elif not (first and draft.margin):
            asked = min(draft.pace.ask(), left - 1)
        proposed = draft.propose(history, asked) if asked else []
        width = 1 + len(proposed)
        step = session.step(np.array([[history[-1], *proposed]], np.int32), ONE * width, want)
        said: list[int] = step.ids[0, :, 0].tolist()
        right = common(proposed, said)
        # A round that reads the prompt, begins a draft or repeats steps says nothing about what rounds cost.
        usual = not (first or unsure or (fresh and asked))
        draft.pace.took(len(proposed), right, perf_counter() - began if usual else None)
        said = said[: right + 1]
        unsure = False
        if draft.margin and (first or (width == 1 and alone == len(history) - 1)):
            alone = len(history)
        elif draft.margin:
            lead = step.logp[0, : right + 1, 0] - step.logp[0, : right + 1, 1]
            close = np.flatnonzero(lead < draft.margin)
            if unsure := bool(len(close)):
                said = said[: close[0]]
        first, fresh = False, fresh and not asked
        stats.steps += 1
        stats.proposed += len(proposed)
        stats.accepted += min(right, len(said))
        for token in said:
            if token == model.eos_id:
                return
            history.append(token)
            stats.tokens += 1
            left -= 1
            yield token
        session.rewind(ONE * (len(history) - 1))


def drawn(
    logits: F32, history: Sequence[int], model: Model, sampling: Sampling, draw: np.random.Generator
) -> int:
    ids, shares = candidates(logits, history, model, sampling)
    place = int(np.searchsorted(np.cumsum(shares), draw.random(), side="right"))
    return int(ids[min(place, len(ids) - 1)])


def candidates(
    logits: F32, history: Sequence[int], model: Model, sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may follow `history` by `logits` [V], likeliest first, and their probabilities.

    None of `model.suppress` is among them.
    """
    scores = logits.astype(np.float64)
    seen = np.unique(np.array(history, np.int64))
    scores[seen] *= np.where(scores[seen] < 0, sampling.repetition_penalty, 1 / sampling.repetition_penalty)
    scores /= sampling.temperature
    scores[model.suppress] = -np.inf
    ids = np.arange(len(scores))
    if 0 < sampling.top_k < len(scores):
        least = np.partition(scores, -sampling.top_k)[-sampling.top_k]  # all of equal scores stay
        ids = np.flatnonzero(scores >= least)
    order = np.argsort(-scores[ids], kind="stable")
    ids, scores = ids[order], scores[ids[order]]
    shares = np.exp(scores - scores[0])
    before = np.cumsum(shares) - shares
    # A token stays while those before it have less than top_p together; so the first always does.
    kept = max(1, int(np.searchsorted(before, sampling.top_p * shares.sum())))
    return ids[:kept], shares[:kept] / shares[:kept].sum()
