"""What a model writes around a translation is taken away where the source has nothing like it; loops are cut.

All this can be streamed: `settled` is the part of an answer that nothing behind it changes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgemt.prompts import LANGUAGES
from edgemt.text import ENGLISH_WORDS, language_of

NAMES = [name.lower() for names in LANGUAGES.values() for name in names]
# Before a colon or in brackets: "Translation:", "英语翻译：", "[English]".
LABELS = frozenset(
    ["translation", "translated text", "翻译", "翻译结果", "译文", "英文", "英文翻译", *NAMES]
    + [f"{name} translation" for name in NAMES]
    + [f"{name}翻译" for name in NAMES]
)
HEAD = 40  # a source with a colon in so many characters may have a label of its own
BRACKETS = {"[": "]", "(": ")", "（": "）", "【": "】"}
QUOTES = {'"': '"', "“": "”", "《": "》", "「": "」", "『": "』", "'": "'", "‘": "’", "`": "`"}
BOLD = "*#_"
# How what is said before a colon and a line break begins, and how prompts do, which end so too.
INTRODUCTIONS = ("here is", "here's", "sure", "certainly", "以下是", "这是", "好的", "当然")
PROMPTS = ("将以下", "把下面", "参考下面", "参考上面", "translate the following")
LAST_OF_PROMPT = re.compile(r".*(?:[:：]|explanation\.|</target>)[ \t]*\n+", re.DOTALL)
FENCED = re.compile(r"```\w*\s*\n?(.*?)\s*(?:```.*)?", re.DOTALL)
OPENED = re.compile(r"(?:</?(?:target|source)>\s*)+")
TAGS, CLOSINGS = ("<target>", "</target>", "<source>", "</source>"), ("</target>", "</source>")
NOTE = re.compile(r"\W?(?:note|explanation|p\.s\.|注|备注|说明|解释)\s*[:：]", re.IGNORECASE)
LOOP, LEAST = 3, 12  # an answer ends in a loop if that came so often, and is so many tokens long in all


def clean(answer: str, source: str) -> str:
    """The translation in an answer to a `source`. Nothing is taken that the source may have asked for."""
    text, before = answer.strip(), None
    while text != before and begins(text, source):
        text, before = unwrapped(text, source), text
    return ended(text, source)


def ended(text: str, source: str) -> str:
    """The text without what follows the translation."""
    ends = [text.find(tag) for tag in CLOSINGS if tag in text and tag not in source]
    text = text[: min(ends)].rstrip() if ends else text
    if "\n" in source:
        return text
    lines = [line.rstrip() for line in re.split(r"[\r\n]\s*", re.split(r"\n\s*\n", text)[0])]
    notes = [i for i, line in enumerate(lines) if i and NOTE.match(line)]
    return " ".join(lines[: notes[0]] if notes else lines)


def settled(answer: str, source: str) -> str:
    """What `clean` of this answer begins with, whatever the answer goes on with."""
    text = answer.lstrip()
    if not text or begins(text, source):
        return ""
    for tag in CLOSINGS:
        if tag not in source:
            part = next((n for n in range(len(tag), 0, -1) if text.endswith(tag[:n])), 0)
            text = text[: text.find(tag)] if tag in text else text[: len(text) - part]
    return (text if "\n" in source else re.split(r"[\r\n]", text)[0]).rstrip()


def begins(text: str, source: str) -> bool:
    """Whether a text without white space before it begins as chatter does, or may yet turn out to."""
    low, own = text.lower(), source.lower()
    if text[:1] in QUOTES and not any(mark in source for mark in QUOTES):
        return True
    if any(text[:1] in marks and source[:1] not in marks for marks in (BRACKETS, BOLD)):
        return True
    if any(begun(low, start) and not own.startswith(start) for start in (*INTRODUCTIONS, *PROMPTS)):
        return True
    if any(begun(low, tag) and tag not in own for tag in TAGS) or followed(text, source, "\r\n"):
        return True
    return not has_label(source) and any(followed(low, label, ":：") for label in LABELS)


def begun(text: str, start: str) -> bool:
    return text.startswith(start) or start.startswith(text)


def followed(text: str, start: str, marks: str) -> bool:
    """Whether `text` begins with `start` and one of the marks, or may go on so."""
    rest = text[len(start) :].lstrip(" *_")
    return begun(text, start) and (not rest or rest[0] in marks)


def has_label(source: str) -> bool:
    return any(mark in source[:HEAD] for mark in ":：")


def unwrapped(text: str, source: str) -> str:
    """The text without the first chatter around it; itself where there is none after all."""
    low, own = text.lower(), source.lower()
    first, _, rest = text.partition("\n")
    if text.startswith("```") and "```" not in source and (found := FENCED.fullmatch(text)) and found[1]:
        return found[1]
    if (found := OPENED.match(text)) and not any(tag in source for tag in TAGS):
        return text[found.end() :]
    if low.startswith(PROMPTS) and not own.startswith(PROMPTS) and (found := LAST_OF_PROMPT.match(text)):
        return text[found.end() :].strip()
    if (
        low.startswith(INTRODUCTIONS)
        and not own.startswith(INTRODUCTIONS)
        and first.rstrip()[-1:] in (":", "：")
    ):
        return rest.strip() or text
    if first.rstrip() == source and rest.strip():
        return rest.strip()
    if closing := BRACKETS.get(text[:1]):
        label, _, rest = low[1:].partition(closing)
        if source[:1] not in BRACKETS and (label in LABELS or label in LANGUAGES) and rest.strip():
            return text[len(text) - len(rest) :].strip()
    label, _, rest = re.sub("[:：]", ":", text).partition(":")
    if not has_label(source) and label.strip(" *#_").lower() in LABELS and rest.strip(" *_"):
        return text[len(text) - len(rest) :].strip(" *_\n")
    body, quotes = ended(text, source), {*QUOTES, *QUOTES.values()}
    if QUOTES.get(body[:1]) == body[1:][-1:] and not quotes & {*body[1:-1], *source} and body[1:-1].strip():
        return body[1:-1].strip()
    return text


def doubt(target: str, language: str) -> str:
    """What is wrong with a translation into `language` at a glance: "empty", "script", or ""."""
    if not target.strip():
        return "empty"
    language = language.split("-")[0]
    wrong = (
        language_of(target) == "en" and ENGLISH_WORDS.search(target) is not None
        if language in ("zh", "yue")
        else language_of(target) == "zh" and language not in ("ja", "ko")
    )
    return "script" if wrong else ""


def unlooped(tokens: Sequence[int]) -> tuple[int, ...]:
    """An answer that was cut at its limit: where it ends in a loop, up to the end of that's first time.

    A loop is at least LOOP times the same tokens, the last of them possibly cut.
    """
    for period, again in enumerate(repeated(tokens)[: len(tokens) // 2]):
        if period and again >= (LOOP - 1) * period and again + period >= LEAST:
            return tuple(tokens[: len(tokens) - again])
    return tuple(tokens)


def unrepeated(tokens: Sequence[int]) -> int:
    """How many of the first tokens `unlooped` keeps, whatever tokens follow."""
    return len(tokens) - max(repeated(tokens)[1:], default=0)


def repeated(tokens: Sequence[int]) -> list[int]:
    """For each period, how many of the last tokens are each the same as that so many places before.

    The Z algorithm (Gusfield 1997, Algorithms on Strings, Trees and Sequences, 1.4) on the tokens backwards:
    its time grows with their number, also where they are one long loop.
    """
    back, found = tokens[::-1], [0] * len(tokens)
    start = end = 0  # of the part furthest behind that is known to be as the beginning
    for place in range(1, len(back)):
        same = min(max(0, end - place), found[place - start])
        while place + same < len(back) and back[same] == back[place + same]:
            same += 1
        if place + same > end:
            start, end = place, place + same
        found[place] = same
    return found
