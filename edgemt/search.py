"""Search for the best translation: greedy, beam, and beam under constraints; one for every runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from edgemt.constraints import Constraint, Free
from edgemt.errors import EdgemtError
from edgemt.generate import Sampling
from edgemt.manifest import Model
from edgemt.runtimes.protocol import F32, Program, Snapshot, Want

# Hypotheses of a constrained source: too few cannot hold a fluent one at every stage of the terms. Mean score
# and CPU time of forty sentences with 1 to 16 tokens to place: a beam of 8, -1.68, 56 ms; of two for each
# token, -1.64, 82 ms; of 16, -1.61, 120 ms; of 32, -1.57, 259 ms.
CONSTRAINED_BEAM = 8
BEAM_A_TOKEN = 2
MOST_CONSTRAINED = 32
# Ends that a constrained search waits for. By benchmarks/glossary.py, chrF zh-en and en-zh, and CPU time to
# greedy search's: 1, 45.1 and 26.3, 3.3; 4, 45.6 and 26.5, 3.6; no limit, 46.1 and 26.5, 6.4.
CONSTRAINED_ENDS = 4
FREE = Free()


@dataclass(frozen=True)
class SearchOptions:
    """How to search."""

    beam: int = 1  # hypotheses kept; 1 is greedy search
    max_length_factor: float = 2.0  # a result has at most factor × the source's tokens + extra tokens,
    max_length_extra: int = 16  # its end included
    scores: bool = False  # greedy search too computes log-probabilities (slower than the fused loop)
    sampling: Sampling | None = None  # draw tokens instead (decoder-only models, without beam and constraint)
    length_penalty: float = 1.0  # hypotheses compare by logp / length ** length_penalty
    # How hypotheses under constraints rank, by benchmarks/glossary.py.
    place: float = 0.5  # weight of the attention on a term's source where the term begins,
    replace: float = 0.5  # and of that where another word is written

    def limit(self, length: int, room: int, more: int = 0) -> int:
        """The most tokens of a result for a text of `length` tokens, end included, in so many positions."""
        asked = int(self.max_length_factor * length) + self.max_length_extra + more
        return max(1, min(asked, room))


@dataclass(frozen=True)
class Hypothesis:
    """A translation in target ids, without the end. `finished` is false where the length limit cut it.

    `logp` is its log-probability, end included, and `score` that by length; both are None after greedy search
    without `scores`.
    """

    tokens: tuple[int, ...]
    score: float | None
    logp: float | None
    finished: bool


def search(
    program: Program,
    sources: Sequence[Sequence[int]],
    model: Model,
    options: SearchOptions,
    constraints: Sequence[Constraint | None] | None = None,
    prefix: int = 0,
    lengths: Sequence[int] | None = None,
    begun: Snapshot | None = None,
) -> list[Hypothesis]:
    """One translation a source (ids with language prefix and end, or a prompt); all are decoded together.

    A source with a constraint gets a wider beam, and a result that meets it. The spans of its terms count
    from source token `prefix` on. A result's length is limited by `lengths`, those of the texts in the
    sources (None: of the sources themselves). All sources begin with the tokens that `begun` has taken.
    Raises EdgemtError for ids or lengths that the model does not take, and for a constraint longer than it.
    """
    constraints = [None] * len(sources) if constraints is None else constraints
    fused = options.beam == 1 and not options.scores and program.caps.greedy
    missing = [0 if constraint is None else constraint.missing for constraint in constraints]
    limits = []
    for source, length, more in zip(sources, lengths or map(len, sources), missing, strict=True):
        room = model.max_positions - (len(source) if program.caps.prompts else 0)
        limits.append(options.limit(length, room, more))
    if begun is not None:
        sources = [source[begun.lengths[0] :] for source in sources]
    found: dict[int, Hypothesis] = {}
    if easy := [i for i, constraint in enumerate(constraints) if fused and constraint is None]:
        lines = _greedy(program, [sources[i] for i in easy], model, [limits[i] for i in easy], begun)
        found |= zip(easy, lines, strict=True)
    if rest := [i for i in range(len(sources)) if i not in found]:
        progress = [constraints[i] or FREE for i in rest]
        some = [limits[i] for i in rest]
        beams = _beam(program, [sources[i] for i in rest], model, options, progress, some, prefix, begun)
        found |= zip(rest, beams, strict=True)
    return [found[i] for i in range(len(sources))]


def _encode(program: Program, sources: Sequence[Sequence[int]], pad: int):
    lengths = np.array([len(source) for source in sources], np.int32)
    ids = np.full((len(sources), lengths.max()), pad, np.int32)
    for row, source in zip(ids, sources, strict=True):
        row[: len(source)] = source
    return program.encode(ids, lengths)


def _greedy(
    program: Program,
    sources: Sequence[Sequence[int]],
    model: Model,
    limits: Sequence[int],
    begun: Snapshot | None,
) -> list[Hypothesis]:
    """`limits`: the most tokens to generate for each source, the end included."""
    start = np.full((len(sources), 1), model.start_id, np.int32)
    stop = np.array([model.eos_id], np.int32)
    lines = program.greedy(_encode(program, sources, model.pad_id), start, max(limits), stop, begun)
    return [
        Hypothesis(tuple(line[:limit].tolist()), None, None, len(line) < limit)
        for line, limit in zip(lines, limits, strict=True)
    ]


class _Live(NamedTuple):
    """A hypothesis that goes on. `tail`: its tokens as a linked list, the newest first."""

    rank: float  # what hypotheses compare by: logp and the guidance of the constraint
    logp: float
    tail: tuple | None
    progress: Constraint
    over: bool  # its fluent end has passed: the model wanted to end and the constraint forbade it


# A hypothesis with one more token: its rank, the index of its parent, the token, its progress, its `over`,
# its logp. Plain tuples: a beam of eight makes seventy-two of them at every step.
_Offer = tuple[float, int, int, Constraint, bool, float]
BY_RANK = itemgetter(0)


class _Beam:
    """The hypotheses of one source."""

    def __init__(
        self,
        size: int,
        limit: int,
        eos: int,
        options: SearchOptions,
        constraint: Constraint,
        look: F32 | None,
    ) -> None:
        """`look` [source, terms] is 1 where a source token is one of a term's; None: without guidance."""
        self.size, self.limit, self.eos, self.look = size, limit, eos, look
        self.enough = max(options.beam, CONSTRAINED_ENDS) if constraint.missing else size
        self.penalty, self.place, self.replace = options.length_penalty, options.place, options.replace
        self.live = [_Live(0.0, 0.0, None, constraint, False)]
        self.length = 0  # tokens of each live hypothesis
        self.ended = 0
        self.best: Hypothesis | None = None
        self.best_score = -np.inf  # its rank by length

    def extend(
        self,
        ids: list[list[int]],
        logp: list[list[float]],
        asked: list[Sequence[int]],
        scored: list[list[float]],
        attention: F32 | None,
    ) -> list[_Offer]:
        """Take one more token; return the offers that became the live hypotheses (none: the search is over).

        `ids`, `logp`: the model's best for each live one; `asked`, `scored`: the constraint's candidates;
        `attention` [live, source].
        """
        self.length += 1
        groups = self._offers(ids, logp, asked, scored, attention)
        for group in groups.values():
            group.sort(key=BY_RANK, reverse=True)
        if ready := groups.pop(0, None):  # the offers whose constraint is met: only they may end
            for rank, parent, token, _, _, total in ready[: self.size]:
                if token == self.eos:
                    self._end(rank, self._hypothesis(total, self.live[parent].tail, True))
            if going := [offer for offer in ready if offer[2] != self.eos]:
                groups[0] = going
        chosen = self._settle(_allot([groups[missing] for missing in sorted(groups)], self.size))
        self.live = [
            _Live(rank, total, (self.live[parent].tail, token), progress, over)
            for rank, parent, token, progress, over, total in chosen
        ]
        if not self._decided():
            return chosen
        if self.best is None:
            top = max((live for live in self.live if not live.progress.missing), key=BY_RANK)
            self.best = self._hypothesis(top.logp, top.tail, False)
        return []

    def _offers(
        self,
        ids: list[list[int]],
        logp: list[list[float]],
        asked: list[Sequence[int]],
        scored: list[list[float]],
        attention: F32 | None,
    ) -> dict[int, list[_Offer]]:
        """The hypotheses with one more token, by the tokens that their constraint then still misses.

        What could not meet it within the length limit any more is left out: so the last steps are forced.
        """
        groups: dict[int, list[_Offer]] = {}
        room, eos = self.limit - self.length, self.eos
        shares = None if attention is None or self.look is None else (attention @ self.look).tolist()
        for parent, live in enumerate(self.live):
            progress, offers = live.progress, zip(ids[parent], logp[parent], strict=True)
            missing = progress.missing
            if asked[parent]:
                offers = (dict(offers) | dict(zip(asked[parent], scored[parent], strict=False))).items()
            wants_end = missing > 0 and ids[parent][0] == eos
            other, special = 0.0, {}
            if shares:
                other, special = progress.guide(shares[parent])
            for token, gain in offers:
                if token == eos:
                    after, left = progress, missing
                    if missing:
                        continue
                else:
                    after = progress.advance(token)
                    left = after.missing
                    if left > room:
                        continue
                over = live.over or (wants_end and left >= missing)
                guidance = self.place * special[token] if token in special else self.replace * other
                rank = live.rank + gain + guidance
                groups.setdefault(left, []).append((rank, parent, token, after, over, live.logp + gain))
        return groups

    def _settle(self, chosen: list[_Offer]) -> list[_Offer]:
        """The offers in an order in which many take their parent's place: those move no cache."""
        if len(chosen) != len(self.live):
            return chosen
        places: list[_Offer | None] = [None] * len(chosen)
        moved: list[_Offer] = []
        for offer in chosen:
            if places[offer[1]] is None:
                places[offer[1]] = offer
            else:
                moved.append(offer)
        return [moved.pop() if place is None else place for place in places]

    def _decided(self) -> bool:
        """Whether to stop.

        For certain when no live hypothesis can get better than the best that ended, were its log-probability
        to stay as it is up to the length limit. Otherwise when enough have
        ended and the best live one is no better now; one whose fluent end has passed is not waited for.
        """
        if self.length == self.limit or not self.live:
            return True
        if self.best is None:
            return False
        top = max((live.rank for live in self.live if not live.over), default=-np.inf)
        length = self.length if self.ended >= self.enough else self.limit
        return self.best_score >= top / length**self.penalty

    def _end(self, rank: float, hypothesis: Hypothesis) -> None:
        self.ended += 1
        score = rank / self.length**self.penalty
        if self.best is None or self.best_score < score:
            self.best, self.best_score = hypothesis, score

    def _hypothesis(self, logp: float, tail: tuple | None, finished: bool) -> Hypothesis:
        tokens = []
        while tail is not None:
            tail, token = tail
            tokens.append(token)
        return Hypothesis(tuple(reversed(tokens)), logp / self.length**self.penalty, logp, finished)


def _allot(groups: list[list[_Offer]], size: int) -> list[_Offer]:
    """Share the beam among the groups (the nearest to meeting the constraint first), each sorted, best first.

    Dynamic beam allocation (Post and Vilar 2018, https://arxiv.org/abs/1804.06609): equal shares, so that
    neither fluent hypotheses nor those with terms crowd the others out; what a small group leaves goes to the
    best of the others.
    """
    if len(groups) == 1:
        return groups[0][:size]
    share = max(1, size // max(1, len(groups)))
    chosen = [offer for group in groups for offer in group[:share]][:size]
    rest = [offer for group in groups for offer in group[share:]]
    return chosen + sorted(rest, key=BY_RANK, reverse=True)[: size - len(chosen)]


def _beam(
    program: Program,
    sources: Sequence[Sequence[int]],
    model: Model,
    options: SearchOptions,
    constraints: Sequence[Constraint],
    limits: Sequence[int],
    prefix: int,
    begun: Snapshot | None,
) -> list[Hypothesis]:
    beams, width = [], max(map(len, sources))
    for limit, constraint in zip(limits, constraints, strict=True):
        if constraint.missing > limit:
            raise EdgemtError(
                f"the terms to place need {constraint.missing} tokens, and the model has {limit} positions; "
                "use fewer terms or split the text"
            )
        size = options.beam
        if constraint.missing:
            wide = BEAM_A_TOKEN * (constraint.missing + 1)
            size = max(size, CONSTRAINED_BEAM, min(wide, MOST_CONSTRAINED))
        look = None
        if constraint.missing and any(constraint.spans) and program.caps.alignment:
            look = np.zeros((width, len(constraint.spans)), np.float32)
            for term, span in enumerate(constraint.spans):
                look[[prefix + position for position in span], term] = 1
        beams.append(_Beam(size, limit, model.eos_id, options, constraint, look))
    most, widest_beam = max(beam.limit for beam in beams), max(beam.size for beam in beams)
    source = _encode(program, sources, model.pad_id)
    session = program.open(source, np.arange(len(beams), dtype=np.int32), most, begun)
    tokens = [model.start_id] * len(beams)
    going = beams
    while going:
        asked = [live.progress.candidates() for beam in going for live in beam.live]
        widest = max(map(len, asked))
        score = None
        if widest:
            score = np.array([[[*some, *[0] * (widest - len(some))]] for some in asked], np.int32)
        # Of one id more than the beam holds one may be the end: the others can fill it from one hypothesis.
        want = Want(widest_beam + 1, score, alignment=any(beam.look is not None for beam in going))
        step = session.step(np.array(tokens, np.int32)[:, None], np.ones(len(tokens), np.int32), want)
        attention = None if step.alignment is None else step.alignment[:, 0]
        ids, logp = step.ids[:, 0].tolist(), step.logp[:, 0].tolist()
        scored = asked if step.scored is None else step.scored[:, 0].tolist()
        parents: list[int] = []
        tokens = []
        first, still = 0, []
        for beam in going:
            own = slice(first, first + len(beam.live))
            seen = None if attention is None else attention[own]
            chosen = beam.extend(ids[own], logp[own], asked[own], scored[own], seen)
            parents += [first + offer[1] for offer in chosen]
            tokens += [offer[2] for offer in chosen]
            if chosen:
                still.append(beam)
            first = own.stop
        going = still
        if going:
            session.reindex(np.array(parents, np.int32))
    session.close()
    return [beam.best for beam in beams if beam.best is not None]
