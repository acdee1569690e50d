"""HTML and XML in tokens: which are text, which are tags within a sentence, and which are around it.

Of the standard library's html.parser only the order and the kind of things is taken: each is a slice of the
text, so that nothing is lost, well-formed or not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import accumulate


def names(*lines: str) -> frozenset[str]:
    return frozenset(name for line in lines for name in line.split())


INLINE = names(
    "a abbr acronym b bdi bdo big br cite code data del dfn em font i img input ins kbd label mark math",
    "meter nobr output picture progress q rp rt ruby s samp small span strike strong sub sup svg time tt u",
    "var wbr",
    "bpt bx ec em ept ex g hi it mrk pc ph sc x",  # of XLIFF
)
BLOCK = names(
    "address article aside audio base blockquote body button canvas caption center col colgroup dd details",
    "dialog dir div dl dt embed fieldset figcaption figure footer form frame frameset h1 h2 h3 h4 h5 h6 head",
    "header hgroup hr html iframe legend li link main map menu meta nav noscript object ol optgroup option p",
    "param pre script search section select slot source style summary table tbody td template textarea tfoot",
    "th thead title tr track ul video",
)
VOID = names("area base br col embed hr img input link meta param source track wbr")
OPAQUE = names("code kbd math pre samp script style svg textarea tt var")  # what is in these is no language


@dataclass
class Token:
    """A slice of the text. `partner`: the index of the other tag of its element."""

    kind: str  # "text", "open", "close", "other" (all without text, an element that is not to be translated)
    start: int
    name: str = ""
    keep: bool = False  # the element is not to be translated
    end: int = 0
    partner: int = -1
    inline: bool = True


class Parser(HTMLParser):
    """The tokens of a text, in order and without a gap."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=False)
        self._lines = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
        self.tokens: list[Token] = [Token("text", 0)]
        self.feed(text)
        self.close()
        starts = [token.start for token in self.tokens]
        for token, end in zip(self.tokens, [*starts[1:], len(text)], strict=True):
            token.end = end

    def _add(self, kind: str, name: str = "", keep: bool = False) -> None:
        line, column = self.getpos()
        if kind != "text" or self.tokens[-1].kind != "text":
            self.tokens.append(Token(kind, self._lines[line - 1] + column, name, keep))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        keep = tag in OPAQUE or (dict(attrs).get("translate") or "").lower() == "no"
        self._add("other" if tag in VOID else "open", tag, keep)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add("other", tag)

    def handle_endtag(self, tag: str) -> None:
        self._add("close", tag)

    def handle_data(self, data: str) -> None:
        self._add("text")

    def handle_entityref(self, name: str) -> None:
        self._add("text")

    def handle_charref(self, name: str) -> None:
        self._add("text")

    def handle_comment(self, data: str) -> None:
        self._add("other")

    def handle_decl(self, decl: str) -> None:
        self._add("other", "html")

    def handle_pi(self, data: str) -> None:
        self._add("other", "html")

    def unknown_decl(self, data: str) -> None:
        self._add("other")

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:  # "<![" with an unknown word behind it
            return self.parse_bogus_comment(i)


def tokens_of(text: str) -> list[Token]:
    """The tokens, each tag with its partner, and with whether it is inline.

    An element that HTML does not know is so where text stands beside it in the same element.
    """
    tokens = Parser(text).tokens
    stack: list[tuple[int, list[int]]] = [(-1, [])]  # open elements, and the unknown tags right in each
    beside: set[int] = set()  # elements that have text of their own
    names: Counter[str] = Counter()
    unknown: list[tuple[int, int]] = []
    for i, token in enumerate(tokens):
        parent = stack[-1][0]
        if token.kind == "text":
            if text[token.start : token.end].strip():
                beside.add(parent)
        elif token.kind == "open":
            stack.append((i, []))
            names[token.name] += 1
        elif token.kind == "close" and names[token.name]:
            while stack[-1][0] >= 0:
                last, _ = stack.pop()
                names[tokens[last].name] -= 1
                if tokens[last].name == token.name:
                    token.partner, tokens[last].partner = last, i
                    break
            parent = stack[-1][0]
        if token.kind != "text" and token.name:
            if token.name not in INLINE and token.name not in BLOCK:
                unknown.append((i, parent))
            token.inline = token.name in INLINE
    for i, parent in unknown:
        tokens[i].inline = parent in beside
    return tokens
