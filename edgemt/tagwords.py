"""Where the words of a tag that a model lost went, so that the tag can be put around them after all.

A model that is bad at tags mostly translates what is in them: a number stays itself, a term of the glossary
becomes its translation, a word what the model makes of it alone. Where one of these stands in the translation
exactly once, and no other tag is in the way, that is the tag's place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from edgemt.glossary import is_word, lower
from edgemt.tags import Place, Tagged, solid

# What a word said alone has around it and need not have in a sentence.
AROUND = re.compile(r"^(?:(?:the|an?|to)\s+)?(.*?)[\s.,;:!?。，；：！？、]*$", re.IGNORECASE | re.DOTALL)


def found_again(
    tagged: Tagged,
    target: str,
    places: Mapping[int, Place],
    lost: Collection[int],
    spoken: Callable[[str], Iterable[str]],
) -> dict[int, Place]:
    """`places` with those of the `lost` elements whose words are in `target`.

    `spoken` gives what the words of the source may have become, the surest first.
    """
    found = dict(places)
    for number in sorted(lost):
        node = tagged.all[number]
        words = tagged.plain[node.start : node.end].strip()
        if not node.close or not words:
            continue
        for said in spoken(words):
            place = only(said, target)
            with_it = tagged.nested({**found, number: place}) if place else {}
            if len(with_it) > len(found):
                found = with_it
                break
    return found


def only(said: str, text: str) -> Place | None:
    """The place of what was said alone, in the text; None unless it is there exactly once, as a word."""
    match = AROUND.match(said.strip())
    words = lower(match[1]) if match else ""
    if not words:
        return None
    where = lower(text)
    starts = [i for i in range(len(where)) if where.startswith(words, i) and is_word(text, i, i + len(words))]
    if len(starts) != 1:
        return None
    start = len(solid(text[: starts[0]]))
    return Place(start, start + len(solid(words)))
