"""What a translation must contain: an object that names candidates and advances with each hypothesis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

OTHER = -1  # any token that is in no spelling


class Constraint(Protocol):
    """A hypothesis' progress. Immutable: `advance` returns the progress after one more token."""

    @property
    def missing(self) -> int:
        """The fewest further tokens that meet the constraint; 0: it is met, and the hypothesis may end."""
        ...

    def candidates(self) -> Sequence[int]:
        """Ids that make progress. While the constraint is not met, one of them makes `missing` smaller."""
        ...

    def advance(self, token: int) -> Constraint: ...


class Free:
    """No constraint."""

    missing = 0

    def candidates(self) -> Sequence[int]:
        return ()

    def advance(self, token: int) -> Free:
        return self


class TermConstraint:
    """All terms must appear, each in one of its spellings, as an unbroken sequence of tokens.

    Terms may overlap ("heart rate" and "rate limit" are both in "heart rate limit"). A term that was begun
    and is not continued loses its progress, except for what its last tokens begin anew: the spellings form
    an Aho-Corasick automaton (https://doi.org/10.1145/360825.360855), whose state is the longest ending of
    the hypothesis that begins a spelling.
    """

    def __init__(self, alternatives: Sequence[Sequence[Sequence[int]]], inside: Iterable[int] = ()) -> None:
        """`alternatives`: for each term, its spellings in token ids, none of them empty.

        `inside`: ids that continue a word ("ies"). A term that one of them follows directly has not appeared
        as a word, unless that token begins another term.
        """
        self._enter(_Automaton(alternatives, frozenset(inside)), 0, 0, 0)

    def _enter(self, automaton: _Automaton, node: int, met: int, fresh: int) -> TermConstraint:
        """`met`: the terms that have appeared; `fresh`: those whose last token is the hypothesis' last."""
        self._automaton, self._node, self._met, self._fresh = automaton, node, met, fresh
        self._after: dict[int, TermConstraint] = {}
        self._candidates = automaton.candidates(node, met | fresh)
        self.missing = automaton.missing(node, met | fresh)
        return self

    def candidates(self) -> Sequence[int]:
        return self._candidates

    def advance(self, token: int) -> TermConstraint:
        if token not in self._automaton.alphabet:
            token = OTHER
        if token not in self._after:
            self._after[token] = self._advance(token)
        return self._after[token]

    def _advance(self, token: int) -> TermConstraint:
        automaton = self._automaton
        node = automaton.follow(self._node, token)
        joined = token in automaton.inside and not node
        met = self._met if joined else self._met | self._fresh
        fresh = automaton.ends[node] & ~met
        if (node, met, fresh) == (self._node, self._met, self._fresh):
            return self
        return object.__new__(TermConstraint)._enter(automaton, node, met, fresh)


class _Automaton:
    """The spellings of all terms. A node is a beginning of some (0: the empty one); bits stand for terms."""

    def __init__(self, alternatives: Sequence[Sequence[Sequence[int]]], inside: frozenset[int]) -> None:
        if not all(term and all(term) for term in alternatives):
            raise ValueError("a term without a spelling, or a spelling without tokens")
        self.inside = inside
        self.alphabet = inside.union(*(spelling for term in alternatives for spelling in term))
        self.shortest = [min(map(len, term)) for term in alternatives]
        self.children: list[dict[int, int]] = [{}]
        self.ends = [0]  # the terms that are complete here
        self.left: list[set[tuple[int, int]]] = [
            set()
        ]  # (term, tokens still to come) of the spellings begun here
        for number, term in enumerate(alternatives):
            for spelling in term:
                self._add(number, spelling)
        self.fallback = [0] * len(self.children)  # the longest node that is a proper ending of this one
        queue = list(self.children[0].values())
        for node in queue:
            for token, child in self.children[node].items():
                queue.append(child)
                self.fallback[child] = self.follow(self.fallback[node], token)
        for node in queue:  # shorter nodes come first
            self.ends[node] |= self.ends[self.fallback[node]]
            self.left[node] |= self.left[self.fallback[node]]

    def _add(self, number: int, spelling: Sequence[int]) -> None:
        node = 0
        for position, token in enumerate(spelling, 1):
            if token not in self.children[node]:
                self.children[node][token] = len(self.children)
                self.children.append({})
                self.ends.append(0)
                self.left.append(set())
            node = self.children[node][token]
            self.left[node].add((number, len(spelling) - position))
        self.ends[node] |= 1 << number

    def follow(self, node: int, token: int) -> int:
        while node and token not in self.children[node]:
            node = self.fallback[node]
        return self.children[node].get(token, 0)

    def missing(self, node: int, met: int) -> int:
        """Tokens still to come: the shortest spelling of each unmet term, the rest only of one begun here."""
        total = sum(length for number, length in enumerate(self.shortest) if not met >> number & 1)
        saved = (self.shortest[n] - left for n, left in self.left[node] if not met >> n & 1)
        return total - max(0, max(saved, default=0))

    def candidates(self, node: int, met: int) -> tuple[int, ...]:
        """The tokens that begin or continue a spelling of an unmet term."""
        found: dict[int, None] = {}
        at: int | None = node
        while at is not None:
            for token, child in self.children[at].items():
                if any(not met >> number & 1 for number, _ in self.left[child]):
                    found[token] = None
            at = self.fallback[at] if at else None
        return tuple(found)
