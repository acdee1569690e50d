"""What a translation must contain: an object that names candidates and advances with each hypothesis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

# Any token that is in no spelling: -1, less 1 if it goes on with a word, less 2 if it ends in a letter.
OTHER, GOING_ON = -1, (-2, -4)
NEVER = 1 << 30  # `missing` of a hypothesis that nothing can make meet its constraint any more
LEAST = 0.01  # the least attention that counts: a model's mistake must not forbid a place


class Constraint(Protocol):
    """A hypothesis' progress. Immutable: `advance` returns the progress after one more token."""

    @property
    def missing(self) -> int:
        """So many further tokens meet the constraint for certain; 0: it is met, and the hypothesis may end.

        More than a model has positions: it cannot be met any more.
        """
        ...

    @property
    def spans(self) -> Sequence[Sequence[int]]:
        """For each term, which tokens of the source text it translates; possibly none."""
        ...

    def candidates(self) -> Sequence[int]:
        """Ids that make progress. While the constraint is not met, one of them makes `missing` smaller."""
        ...

    def advance(self, token: int) -> Constraint: ...

    def guide(self, attention: Sequence[float]) -> tuple[float, Mapping[int, float]]:
        """What the next token adds to a hypothesis' rank (at most 0): any token, and some that differ.

        `attention`: the share of the model's attention that each span gets while it chooses this token.
        """
        ...


class Free:
    """No constraint."""

    missing = 0
    spans = ()

    def candidates(self) -> Sequence[int]:
        return ()

    def advance(self, token: int) -> Free:
        return self

    def guide(self, attention: Sequence[float]) -> tuple[float, Mapping[int, float]]:
        return 0.0, {}


@dataclass(frozen=True)
class Stops:
    """What ends a sentence. It may not while terms are missing: they would stand behind the sentence."""

    closing: frozenset[int] = frozenset()
    points: frozenset[int] = frozenset()  # those of `closing` that are a decimal point in front of a digit
    digits: frozenset[int] = frozenset()  # that go on with a number
    inner: int = 0  # sentence ends that the text has before its last one: so many may be passed


class TermConstraint:
    """All terms must appear, each in one of its spellings, as an unbroken sequence of tokens.

    Terms may overlap ("heart rate" and "rate limit" are both in "heart rate limit"). A term that was begun
    and is not continued loses its progress, except for what its last tokens begin anew: the spellings form
    an Aho-Corasick automaton (https://doi.org/10.1145/360825.360855), whose state is the longest ending of
    the hypothesis that begins a spelling.
    """

    def __init__(
        self,
        alternatives: Sequence[Sequence[Sequence[int]]],
        inside: Iterable[int] = (),
        spans: Sequence[Sequence[int]] = (),
        stops: Stops = Stops(),
        words: Iterable[int] = (),
    ) -> None:
        """`alternatives`: for each term, its spellings in token ids, none of them empty.

        `inside`: ids that go on with a word ("ies", "CT"); `words`: ids that end in a letter. One that ends
        so, and that an id of `inside` follows, has not appeared as a word; nor does one begin with such an id
        behind a letter, if it has another spelling. `spans`: as in `Constraint`, for guidance.
        """
        automaton = _Automaton(alternatives, frozenset(inside), frozenset(words), spans, stops)
        self._enter(automaton, 0, 0, 0, stops.inner, False, False)

    def _enter(
        self, automaton: _Automaton, node: int, met: int, fresh: int, stops: int, point: bool, word: bool
    ) -> TermConstraint:
        """`met`: the terms that have appeared; `fresh`: those whose last token is the hypothesis' last.

        `stops`: sentence ends that may still come before the last term (-1: too many came); `point`: the
        last token is one of them, unless a digit follows; `word`: the last token ends in a letter.
        """
        self._automaton, self._state = automaton, (node, met, fresh, stops, point, word)
        self._after: dict[int, TermConstraint] = {}
        self._candidates = automaton.candidates(node, met | fresh, word)
        self._unmet, self._begins, self._special = automaton.guidance(node, met | fresh, word)
        self.missing = automaton.missing(node, met, fresh, word)
        self.spans = automaton.spans
        if self.missing and point and not stops:
            self._candidates, self.missing = tuple(automaton.stops.digits), self.missing + 1
        elif stops < 0:
            self._candidates, self.missing = (), NEVER
        return self

    def candidates(self) -> Sequence[int]:
        return self._candidates

    def advance(self, token: int) -> TermConstraint:
        token = self._automaton.kind(token)
        if token not in self._after:
            self._after[token] = self._advance(token)
        return self._after[token]

    def _advance(self, token: int) -> TermConstraint:
        automaton = self._automaton
        node, met, fresh, stops, point, word = self._state
        if point and token not in automaton.stops.digits:
            stops -= 1
        node = automaton.follow(node, token, word)
        joined = word and automaton.goes_on(token)
        met = met if joined else met | fresh
        fresh = automaton.ends[node] & ~met
        point = False
        if token in automaton.stops.closing and not node and self.missing:
            point = token in automaton.stops.points and bool(automaton.stops.digits)
            stops -= not point
        state = (node, met, fresh, stops, point, automaton.is_word(token))
        if state not in automaton.states:
            automaton.states[state] = object.__new__(TermConstraint)._enter(automaton, *state)
        return automaton.states[state]

    def guide(self, attention: Sequence[float]) -> tuple[float, Mapping[int, float]]:
        """A term begins best where the model looks at its source, and nothing else should be written there.

        So the model's own word for it gives way to the term and does not stand beside it; nor should a term
        come twice whose source is there once. As placement by
        alignment (Song et al. 2020, https://doi.org/10.1609/aaai.v34i05.6418; Chen et al. 2021,
        https://doi.org/10.1609/aaai.v35i14.17496), but as a preference, so that every term finds a place.
        """
        seen = sum(share for number, share in enumerate(attention) if self._unmet >> number & 1)
        special = {
            token: math.log(max(LEAST, *(attention[number] for number in terms)))
            for token, terms in self._begins.items()
        }
        return math.log(max(LEAST, 1 - seen)), special | self._special


class _Automaton:
    """The spellings of all terms. A node is a beginning of some (0: the empty one); bits stand for terms."""

    def __init__(
        self,
        alternatives: Sequence[Sequence[Sequence[int]]],
        inside: frozenset[int],
        words: frozenset[int],
        spans: Sequence[Sequence[int]],
        stops: Stops,
    ) -> None:
        if not all(term and all(term) for term in alternatives):
            raise ValueError("a term without a spelling, or a spelling without tokens")
        # First tokens of terms that are never spelt with a space may stand anywhere.
        free = {s[0] for term in alternatives if all(s[0] in inside for s in term) for s in term}
        self.inside, self.words = (inside - free if free else inside), words
        self.bare = {s[0] for term in alternatives for s in term} & self.inside  # not behind a letter
        self.spans, self.stops = spans or [()] * len(alternatives), stops
        # Terms whose source is in one place: they are not expected twice.
        self.once = sum(
            1 << n for n, span in enumerate(self.spans) if span and span[-1] - span[0] < len(span)
        )
        tokens = (token for term in alternatives for spelling in term for token in spelling)
        self.alphabet = stops.closing.union(tokens, stops.digits)
        self.shortest = [min(len(s) for s in term if s[0] not in self.bare) for term in alternatives]
        self.states: dict[tuple[int, int, int, int, bool, bool], TermConstraint] = {}
        self.children: list[dict[int, int]] = [{}]
        self.ends = [0]  # the terms that are complete here
        # (term, tokens still to come, the next of them or OTHER) of the spellings begun here
        self.left: list[set[tuple[int, int, int]]] = [set()]
        for number, term in enumerate(alternatives):
            for spelling in term:
                self._add(number, spelling)
        self.fallback = [0] * len(self.children)  # the longest node that is a proper ending of this one
        queue = list(self.children[0].items())
        for last, node in queue:
            for token, child in self.children[node].items():
                queue.append((token, child))
                self.fallback[child] = self.follow(self.fallback[node], token, last in words)
        for _, node in queue:  # shorter nodes come first
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
            after = spelling[position] if position < len(spelling) else OTHER
            self.left[node].add((number, len(spelling) - position, after))
        self.ends[node] |= 1 << number

    def kind(self, token: int) -> int:
        """The token, or what it counts as."""
        if token in self.alphabet:
            return token
        return OTHER - (token in self.inside) - 2 * (token in self.words)

    def goes_on(self, kind: int) -> bool:
        return kind in self.inside or kind in GOING_ON

    def is_word(self, kind: int) -> bool:
        return kind in self.words or kind < OTHER - 1

    def follow(self, node: int, token: int, word: bool) -> int:
        """The node after one more token; `word`: it stands behind a letter."""
        while node and token not in self.children[node]:
            node = self.fallback[node]
        return 0 if not node and word and token in self.bare else self.children[node].get(token, 0)

    def missing(self, node: int, met: int, fresh: int, word: bool) -> int:
        """Tokens still to come: the shortest spelling of each unmet term, the rest only of one begun here.

        One that goes on with the word that a term has just ended in takes that term back.
        """
        met_now = met | fresh
        kept, back = self._length(met_now), self._length(met)
        least = kept
        for number, left, token in self.left[node]:
            if not met_now >> number & 1:
                takes_back = fresh and word and token in self.inside
                least = min(least, (back if takes_back else kept) - self.shortest[number] + left)
        return least

    def _length(self, met: int) -> int:
        return sum(length for number, length in enumerate(self.shortest) if not met >> number & 1)

    def guidance(self, node: int, met: int, word: bool) -> tuple[int, dict[int, list[int]], dict[int, float]]:
        """For `guide`: the unmet terms that have a span; each token that begins some, and which; the tokens
        that add the same whatever the attention is.

        Those go on with a spelling, which adds nothing, or write a term once more whose source is there once.
        """
        unmet = sum(1 << n for n, span in enumerate(self.spans) if span and not met >> n & 1)
        begins: dict[int, list[int]] = {}
        special: dict[int, float] = {}
        for at in {0, node}:
            for token, child in self.children[at].items():
                if not at and word and token in self.bare:
                    continue
                terms = sorted({number for number, *_ in self.left[child] if unmet >> number & 1})
                if terms and not at:
                    begins[token] = terms
                elif not terms and self.ends[child] & met & self.once:
                    special[token] = math.log(LEAST)
                elif at:
                    special[token] = 0.0
        return unmet, begins, special

    def candidates(self, node: int, met: int, word: bool) -> tuple[int, ...]:
        """The tokens that begin or continue a spelling of an unmet term."""
        found: dict[int, None] = {}
        at: int | None = node
        while at is not None:
            for token, child in self.children[at].items():
                if not at and word and token in self.bare:
                    continue
                if any(not met >> number & 1 for number, *_ in self.left[child]):
                    found[token] = None
            at = self.fallback[at] if at else None
        return tuple(found)
