"""Inline tags of one sentence: numbered for the model, read from its answer, put back as they were.

HY-MT's formatted prompt knows tags `<s1>…</s1>` only: a sentence's own tags are numbered so, and the numbered
ones of an answer become them again. Whatever the answer is, each tag comes back once, inside the same others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

TAG = re.compile(r"<\s*(/?)\s*s(\d+)\s*(/?)\s*>")
Span = tuple[int, int]


@dataclass
class Node:
    """An element of a sentence, or what has no text in it (`<br/>`, a comment): then `close` is "".

    `start` and `end` count the sentence's characters before the element and before its end.
    """

    open: str
    close: str
    start: int
    end: int
    children: list[Node] = field(default_factory=list)
    number: int = 0


class Place(NamedTuple):
    """Where a node stands in a translation, in characters that are no white space; as a span.

    `before`, `after`: whether there is white space around a node without text.
    """

    start: int
    end: int
    before: bool = False
    after: bool = False


class Seen(NamedTuple):
    """A numbered tag in an answer."""

    closes: bool
    at: int
    before: bool
    after: bool


class Tagged:
    """A sentence with its nodes, all of them within it and none across another."""

    def __init__(self, plain: str, nodes: list[Node]) -> None:
        self.plain, self.nodes = plain, simplified(nodes)
        typed = {int(match[2]) for match in TAG.finditer(plain)}  # by a user: those stay text
        number = 0
        for node in walk(self.nodes):
            number += 1
            while number in typed:
                number += 1
            node.number = number
        self.all = {node.number: node for node in walk(self.nodes)}

    def text(self, without: Collection[int] = ()) -> str:
        """The sentence with numbered tags, but those of `without`."""

        def mark(node: Node, inside: str) -> str:
            return inside if node.number in without else f"<s{node.number}>{inside}</s{node.number}>"

        return written(self.plain, self.nodes, lambda node: (node.start, node.end), mark, str)

    def read(self, answer: str, without: Collection[int] = ()) -> tuple[str, dict[int, Place]]:
        """The answer without tags, and where those are that came back as they should. `without`: as asked."""
        parts: list[str] = []
        seen: dict[int, list[Seen]] = {}
        done = length = 0
        for match in TAG.finditer(answer):
            start, end = match.span()
            number = int(match[2])
            if number not in self.all and match[0] in self.plain:
                continue
            parts.append(answer[done:start])
            length += len(solid(parts[-1]))
            done = end
            spaces = answer[start - 1 : start].isspace(), answer[end : end + 1].isspace()
            seen.setdefault(number, []).append(Seen(bool(match[1]), length, *spaces))
        places = {
            node.number: place
            for node in walk(self.nodes)
            if node.number not in without and (place := placed(node, seen.get(node.number, [])))
        }
        return "".join([*parts, answer[done:]]), self.nested(places)

    def nested(self, places: Mapping[int, Place]) -> dict[int, Place]:
        """The places that are within their parents' and apart from all others; the first win."""
        kept: dict[int, Place] = {}

        def visit(nodes: Sequence[Node], around: frozenset[int]) -> None:
            for node in nodes:
                place, inside = places.get(node.number), around
                if place and all(
                    within(place, other) if number in around else apart(place, other)
                    for number, other in kept.items()
                ):
                    kept[node.number], inside = place, around | {node.number}
                visit(node.children, inside)

        visit(self.nodes, frozenset())
        return kept

    def write(self, target: str, places: Mapping[int, Place], escaped: Callable[[str], str]) -> str:
        """The translation `target` with the original tags.

        `places` as `read` gave them. A tag without one goes around all of the translation (or of the tag that
        it is in), where no other tag is in the way, else to the nearer end. `escaped` writes text.
        """
        chars = [i for i, char in enumerate(target) if not char.isspace()]
        found = self._completed(places, len(chars))

        def where(node: Node) -> Span:
            place = found[node.number]
            end = chars[place.end - 1] + 1 if place.end else 0
            start = chars[place.start] if place.start < len(chars) else len(target)
            if node.close:
                return start, max(start, end)
            return end, start if place.before or place.after else end

        def mark(node: Node, inside: str) -> str:
            if node.close:
                return node.open + inside + node.close
            place = found[node.number]
            before = " " if place.before and place.start else ""
            return before + node.open + (" " if place.after and place.end < len(chars) else "")

        return written(target, self.nodes, where, mark, escaped)

    def _completed(self, places: Mapping[int, Place], length: int) -> dict[int, Place]:
        """A place for every node, in a translation of `length` characters."""
        found: dict[int, Place] = {}

        def visit(nodes: Sequence[Node], around: Place, places: Mapping[int, Place]) -> None:
            for node in nodes:
                inner = places
                place = places.get(node.number)
                if place is None:
                    own = [places[child.number] for child in walk(node.children) if child.number in places]
                    others = [
                        found.get(other.number) or places.get(other.number)
                        for sibling in nodes
                        if sibling is not node
                        for other in walk([sibling])
                    ]
                    place = chosen(node, around, own, [other for other in others if other])
                    if not all(within(child, place) for child in own):
                        inner = {}
                found[node.number] = place
                visit(node.children, place, inner)

        def chosen(node: Node, around: Place, own: list[Place], others: list[Place]) -> Place:
            if node.close:
                hull = [Place(min(p.start for p in own), max(p.end for p in own))] if own else []
                for place in (Place(around.start, around.end), *hull):
                    if all(apart(place, other) for other in others):
                        return place
            at = around.start if 2 * node.start < len(self.plain) else around.end
            spaces = (part.isspace() for part in (self.plain[: node.start][-1:], self.plain[node.end :][:1]))
            return Place(at, at, *spaces)

        visit(self.nodes, Place(0, length), places)
        return found


def placed(node: Node, seen: Sequence[Seen]) -> Place | None:
    """The place of a node whose tags were seen; None unless they are what it has, in order."""
    if not node.close:
        if len(seen) == 1 or [tag.closes for tag in seen] == [False, True]:
            return Place(seen[0].at, seen[0].at, seen[0].before, seen[-1].after)
    elif [tag.closes for tag in seen] == [False, True] and seen[0].at < seen[1].at:
        return Place(seen[0].at, seen[1].at)
    return None


def moved(places: Mapping[int, Place], before: str, after: str) -> dict[int, Place]:
    """Places in the text `before`, in what became of it."""
    old, new = solid(before), solid(after)
    if len(old) == len(new):  # marks were changed, or spaces
        return dict(places)
    from difflib import SequenceMatcher

    to: list[int] = []  # of each place in `old`, that in `new`
    for _, first, last, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        to += [min(start + i, end) for i in range(last - first)]
    to.append(len(new))
    return {n: place._replace(start=to[place.start], end=to[place.end]) for n, place in places.items()}


def written(
    text: Sequence[str],
    nodes: Sequence[Node],
    where: Callable[[Node], Span],
    mark: Callable[[Node, str], str],
    escaped: Callable[[Any], str],
) -> str:
    """`text` (characters) with each node's mark around what is at its place, and the same in it."""

    def between(start: int, end: int, nodes: Sequence[Node]) -> Iterator[str]:
        for node in sorted(nodes, key=where):
            first, last = (min(max(place, start), end) for place in where(node))
            yield escaped(text[start:first])
            yield mark(node, "".join(between(first, last, node.children)))
            start = last
        yield escaped(text[start:end])

    return "".join(between(0, len(text), nodes))


def simplified(nodes: Sequence[Node]) -> list[Node]:
    """Nodes without text that touch as one, and an element that is all of another as one with it."""
    found: list[Node] = []
    for node in nodes:
        before = found[-1] if found else None
        if before and not (before.close or node.close) and before.end == node.start:
            found[-1] = Node(before.open + node.open, "", node.start, node.end)
            continue
        node.children = simplified(node.children)
        only = node.children[0] if len(node.children) == 1 else None
        if only and only.close and (only.start, only.end) == (node.start, node.end):
            node = Node(node.open + only.open, only.close + node.close, node.start, node.end, only.children)
        found.append(node)
    return found


def walk(nodes: Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        yield from walk(node.children)


def solid(text: str) -> str:
    return "".join(text.split())


def within(inner: Place, outer: Place) -> bool:
    return outer.start <= inner.start and inner.end <= outer.end


def apart(one: Place, other: Place) -> bool:
    return one.end <= other.start or other.end <= one.start
