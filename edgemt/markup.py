"""HTML and XML: what of a text is to be translated, with everything else kept byte for byte.

The text between two block-level tags is a unit, cut into sentences. The inline tags in a sentence go with it
(tags.py); what is around or between sentences is copied.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html import unescape
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

from edgemt.htmltokens import Token, tokens_of
from edgemt.tags import Node, Tagged, walk, written
from edgemt.text import Piece, has_letters, pieces, spaced, trimmed

CHARACTER = re.compile(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);|[ \t\r\n\f]+|.", re.DOTALL)
ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
DEEPEST = 50  # elements in each other; what is deeper is kept as single tags


@dataclass(frozen=True)
class Part:
    """A part of a text: a sentence with its tags, or (None) what is copied as `target`."""

    source: str
    target: str
    sentence: Tagged | None = None
    escapes: Mapping[str, str] = field(default_factory=dict)  # characters, as the source writes them

    def escaped(self, text: str) -> str:
        return text.translate(str.maketrans({**ESCAPES, **self.escapes}))


def words(text: str) -> str:
    """The text without its tags: what tells its language."""
    tokens = tokens_of(text)
    return " ".join(unescape(text[token.start : token.end]) for token in tokens if token.kind == "text")


def parts(text: str, source_lang: str, target_lang: str, fits: Callable[[str], bool]) -> Iterator[Part]:
    """The text in parts; sources in a row are the text."""
    for copy, group in groupby(
        scattered(text, source_lang, target_lang, fits), lambda part: not part.sentence
    ):
        if copy:
            sources, targets = zip(*((part.source, part.target) for part in group), strict=True)
            yield Part("".join(sources), "".join(targets))
        else:
            yield from group


def scattered(text: str, source_lang: str, target_lang: str, fits: Callable[[str], bool]) -> Iterator[Part]:
    def units(items: list[tuple[int, Token]]) -> Iterator[Part]:
        """What stands between block tags; half an element, whose other half is elsewhere, divides it too."""
        here, some = {i for i, _ in items}, list[tuple[int, Token]]()
        for i, token in items:
            if token.partner >= 0 and token.partner not in here and token.kind in ("open", "close"):
                yield from Unit(text, some).parts(source_lang, target_lang, fits)
                raw = text[token.start : token.end]
                yield Part(raw, raw)
                some = []
            else:
                some.append((i, token))
        yield from Unit(text, some).parts(source_lang, target_lang, fits)

    tokens, items, i = tokens_of(text), [], 0
    while i < len(tokens):
        token, last = tokens[i], i
        if token.keep and token.partner > i:
            last = token.partner
            token = Token("other", token.start, token.name, end=tokens[last].end, inline=token.inline)
        if token.inline:
            items.append((i, token))
        else:
            yield from units(items)
            raw = text[token.start : token.end]
            yield Part(raw, raw)
            items = []
        i = last + 1
    yield from units(items)


class Tag(NamedTuple):
    """A tag between sentences, `at` characters into its unit."""

    at: int
    raw: str
    closes: bool = False


class Unit:
    """Text with inline tags. `plain` is what is read: white space is one space, entities are characters.

    `raw[i]` is what the source has for character i of it.
    """

    def __init__(self, text: str, items: list[tuple[int, Token]]) -> None:
        """`items`: tokens, and their indices among all."""
        self.raw: list[str] = []
        self.nodes: list[Node] = []
        chars: list[str] = []
        here, opened = {i for i, _ in items}, dict[int, tuple[Node, int]]()
        inside = [self.nodes]
        for i, token in items:
            raw, at = text[token.start : token.end], len(self.raw)
            if token.kind == "text":
                for match in CHARACTER.finditer(raw):
                    part = match[0]
                    read = " " if part[0] in " \t\r\n\f" else unescape(part)
                    if read == part[:1]:
                        self.raw.append(part)
                    elif read in ("", part):  # an entity that HTML does not know
                        inside[-1].append(Node(part, "", len(self.raw), len(self.raw)))
                        continue
                    else:
                        self.raw += [part, *[""] * (len(read) - 1)]
                    chars += read
            elif token.kind == "open" and token.partner in here and len(inside) <= DEEPEST:
                node = Node(raw, "", at, at)
                opened[i] = node, token.start
                inside[-1].append(node)
                inside.append(node.children)
            elif token.kind == "close" and token.partner in opened:
                node, start = opened[token.partner]
                inside.pop()
                if "".join(chars[node.start :]).strip():
                    node.close, node.end = raw, at
                else:  # nothing in it is to be translated
                    node.open = text[start : token.end]
                    node.children.clear()
                    self.raw[node.start :] = [""] * (at - node.start)
            else:
                inside[-1].append(Node(raw, "", at, at))
        self.plain = "".join(chars)
        self.escapes = {
            char: raw
            for char, raw, after in zip(self.plain, self.raw, [*self.raw, "-"][1:], strict=True)
            if (raw[:1] == "&" and len(raw) > 1 and after) or raw == ">"
        }

    def parts(self, source_lang: str, target_lang: str, fits: Callable[[str], bool]) -> Iterator[Part]:
        found = self._pieces(source_lang, fits)
        tags, sentences = self._shared(found)
        # White space at an end of an element is between sentences, and yet in the source of one.
        elsewhere = {i for nodes in sentences.values() for node in nodes for i in range(node.start, node.end)}
        at = 0
        for piece, target in spaced(found, target_lang):
            end = at + len(piece.text)
            if not piece.text:  # a space between two sentences: behind the tags that end there
                yield from due(tags, at, closing=True)
                yield Part("", target)
            elif piece.translate:
                yield from due(tags, at)
                first = min([at, *(node.start for node in sentences[at])])
                last = max([end, *(node.end for node in sentences[at])])
                raw = self._raw(first, last, sentences[at])
                nodes = [shifted(node, at, end) for node in sentences[at]]
                yield Part(raw, raw, Tagged(piece.text, nodes), self.escapes)
            else:
                for i in range(at, end):
                    yield from due(tags, i)
                    yield Part("" if i in elsewhere else self.raw[i], self.raw[i] if target else "")
            at = end
        yield from due(tags, len(self.plain))

    def _pieces(self, language: str, fits: Callable[[str], bool]) -> list[Piece]:
        """The unit's sentences and what is between them; no element has an end of its own in a sentence.

        Sentences that an element reaches across are taken as one where that fits, and cut at its ends else.
        """
        found = list(pieces(self.plain, language, fits))
        for node in sorted(walk(self.nodes), key=lambda node: node.end - node.start):
            starts = [0, *accumulate(len(piece.text) for piece in found)]
            first, last = self._solid(node)
            i, j = bisect_right(starts, first) - 1, bisect_right(starts, last - 1) - 1
            if i >= j or not (starts[i] < first or last < starts[j + 1]):
                continue
            whole = self.plain[starts[i] : starts[j + 1]]
            if fits(whole):
                found[i : j + 1] = [Piece(whole, has_letters(whole))]
            else:
                edges = sorted({starts[i], first, *starts[i + 1 : j + 1], last, starts[j + 1]})
                cut = (self.plain[a:b] for a, b in pairwise(edges))
                found[i : j + 1] = [piece for part in cut for piece in trimmed(part, fits)]
        return found

    def _solid(self, node: Node) -> tuple[int, int]:
        """The node's characters without white space at its ends."""
        inner = self.plain[node.start : node.end]
        first = node.start + len(inner) - len(inner.lstrip())
        return first, max(first, node.end - len(inner) + len(inner.rstrip()))

    def _shared(self, found: list[Piece]) -> tuple[deque[Tag], dict[int, list[Node]]]:
        """The tags that are between sentences, in order; the nodes of each sentence, by where it starts."""
        starts = [0, *accumulate(len(piece.text) for piece in found)]
        tags: deque[Tag] = deque()
        sentences: dict[int, list[Node]] = {start: [] for start in starts}

        def visit(nodes: list[Node]) -> None:
            for node in nodes:
                first, last = self._solid(node)
                place = bisect_right(starts, first) - 1
                start, end = starts[place], starts[min(place + 1, len(found))]
                around = (first, last) == (start, end) if node.close else first == start
                if last <= end and not around and found[place].translate:
                    sentences[start].append(node)
                else:
                    tags.append(Tag(node.start, node.open))
                    visit(node.children)
                    if node.close:
                        tags.append(Tag(node.end, node.close, closes=True))

        visit(self.nodes)
        return tags, sentences

    def _raw(self, start: int, end: int, nodes: list[Node]) -> str:
        def mark(node: Node, inside: str) -> str:
            return node.open + inside + node.close

        nodes = [shifted(node, start, end) for node in nodes]
        return written(self.raw[start:end], nodes, lambda node: (node.start, node.end), mark, "".join)


def due(tags: deque[Tag], at: int, closing: bool = False) -> Iterator[Part]:
    """The next tags up to character `at`, which are taken away; only while they close, with `closing`."""
    while tags and tags[0].at <= at and (tags[0].closes or not closing):
        raw = tags.popleft().raw
        yield Part(raw, raw)


def shifted(node: Node, start: int, end: int) -> Node:
    """The node in characters from `start` on, up to `end`."""
    first, last = (min(max(at, start), end) - start for at in (node.start, node.end))
    return Node(node.open, node.close, first, last, [shifted(child, start, end) for child in node.children])
