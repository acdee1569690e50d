"""Text around the model: which language it is, where sentences end, and what passes through untouched.

Nothing is lost: the pieces of a text, put together, are the text again. Sentence ends come from sentencex;
what it gets wrong in clinical notes (list numbers, Latin abbreviations in Chinese) is joined again here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue]

CLOSING = re.compile("[.…!?。！？]")
LATIN = re.compile(r"[0-9A-Za-zÀ-ɏ]")
SURROGATES = re.compile("[\ud800-\udfff]")  # half characters: they cannot be written as UTF-8
# From this share of the letters on, a text with ideographs is Chinese (of 200,000 training pairs, no English
# side reaches it and two Chinese sides stay below). Up to the second share, English function words say that
# it is English with a Chinese name or quotation in it.
HAN_SHARE, HAN_SURE = 0.1, 0.3
ENGLISH_WORDS = re.compile(r"\b(the|is|are|was|has|have|had|of|and|to|in|with|for|a|an)\b", re.IGNORECASE)

# Two characters of which a reader sees one: behind a joiner, before one, a variation or a colour of skin.
JOINED = re.compile("\u200d.|.[\u200d\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]", re.DOTALL)

LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")
CELL = re.compile(r"\t+|[^\t]+")
# Characters given to sentencex at once: its time grows with the square of the number of sentences.
BLOCK = 4096
SPACE = re.compile(r"[^\S\0-\x7f]")  # white space that is not ASCII
SENTENCE_END = re.compile(r"[。！？!?]+[”’」』）)\"']*|[.…]+\s")
LIST_NUMBER = re.compile(r"(?:^|[：；:;.])\s*[（(]?\d{1,2}[.)）]\s*$")
LATIN_STOP = re.compile(r"[A-Za-z0-9]\.\s*$")
TITLE = re.compile(r"(?:Dr|Mr|Mrs|Ms|Prof|St|No|vs)\.\s*$")
ABBREVIATION = re.compile(r"\b[^\W\d_]{1,4}\.\s*$")
CONTINUED = re.compile(r"[a-z0-9]")
# Where a sentence that is too long may be cut, best places first; then between any two characters.
CLAUSE_ENDS = (re.compile(r"[；;]\s*"), re.compile(r"[，：]|[,:]\s+|——"), re.compile(r"、|\s+"))

# What does not belong into a finished text: Chinese has no spaces between ideographs and uses wide marks.
WIDE = r"[^\0-\u2e7f]"  # ideographs, and the marks that go with them
SPACES = "(?:(?<! ) +)?"  # from the first of them only, or a long run would take the square of its length
SPACE_IN_CHINESE = re.compile(rf"(?<={WIDE}|[“”…]) +(?={WIDE}|[“”…])")
NARROW_MARK = re.compile(rf"(?<={WIDE}|”) *([,;:?!]|\.(?![\w.])) *")
NARROW_BRACKETS = re.compile(rf"{SPACES}\(([^()]*{WIDE}[^()]*)\) *")
WIDEN = str.maketrans(",;:?!.", "，；：？！。")
WIDE_MARK = re.compile(rf"{SPACES}([，；：？！。、]) *")
NARROW = str.maketrans("，；：？！。、", ",;:?!.,")


@dataclass(frozen=True)
class Piece:
    """A part of a text: a sentence to translate (`translate`), or what is copied as it is."""

    text: str
    translate: bool = False


def is_closing(mark: str) -> bool:
    """Whether it is nothing but marks, one of them a full stop or its like."""
    return CLOSING.search(mark) is not None and not any(map(str.isalnum, mark))


def well_formed(text: str) -> str:
    """The text with U+FFFD in place of half characters, which no encoder takes."""
    return SURROGATES.sub("\ufffd", text)


def language_of(text: str) -> str | None:
    """ "zh", "en" (any other script counts as that), or None if the text has no letters."""
    letters = sum(map(str.isalpha, text))
    if not letters:
        return None
    share = sum(map(is_ideograph, text)) / letters
    if share < HAN_SHARE or (share < HAN_SURE and ENGLISH_WORDS.search(text)):
        return "en"
    return "zh"


def is_ideograph(char: str) -> bool:
    """Whether it is in the unified blocks, the compatibility block or the supplementary planes."""
    return (
        "\u3400" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff" or "\U00020000" <= char <= "\U0003ffff"
    )


def has_letters(text: str) -> bool:
    return any(map(str.isalpha, text))


def has_letters_of(text: str, language: str) -> bool:
    """Whether the text has a letter that `language` is written in (Chinese and English are told apart)."""
    if language == "zh":
        return any(map(is_ideograph, text))
    if language == "en":
        return any(char.isalpha() and not is_ideograph(char) for char in text)
    return has_letters(text)


def is_for(piece: Piece, language: str) -> bool:
    """Whether a model for texts in `language` is asked for the piece; all else is copied."""
    return piece.translate and has_letters_of(piece.text, language)


def lines(text: str) -> Iterator[str]:
    """The lines, each with its line break (\\n, \\r\\n or \\r)."""
    return (match.group() for match in LINE.finditer(text))


def pieces(text: str, language: str, fits: Callable[[str], bool]) -> Iterator[Piece]:
    """The text in pieces: sentences that `fits` accepts, white space, line breaks, parts without letters."""
    for line in lines(text):
        for cell in CELL.finditer(line):
            for block in blocks(cell.group()):
                for sentence in sentences(block, language):
                    yield from trimmed(sentence, fits)


def trimmed(sentence: str, fits: Callable[[str], bool]) -> Iterator[Piece]:
    """The white space before, the sentence (cut where it is too long), the white space after."""
    core = sentence.strip()
    if not core:
        yield Piece(sentence)
        return
    start = sentence.index(core)
    if start:
        yield Piece(sentence[:start])
    if has_letters(core):
        for part in cut(core, fits):
            yield from [Piece(part, translate=True)] if part == core else trimmed(part, fits)
    else:
        yield Piece(core)
    if start + len(core) < len(sentence):
        yield Piece(sentence[start + len(core) :])


def blocks(line: str) -> Iterator[str]:
    """A line in parts of at most BLOCK characters, each cut after its last sentence end, clause or word."""
    start = 0
    while len(line) - start > BLOCK:
        for mark in (SENTENCE_END, *CLAUSE_ENDS):
            if ends := [match.end() for match in mark.finditer(line, start, start + BLOCK)]:
                end = ends[-1]
                break
        else:
            end = between(line, start + BLOCK)
        yield line[start:end]
        start = end
    yield line[start:]


def sentences(text: str, language: str) -> list[str]:
    """Sentences with the white space that follows them; put together they are `text`."""
    joined: list[str] = []
    for part in parts(text, language):
        if joined and goes_on(joined[-1], part, language):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def parts(text: str, language: str) -> Iterator[str]:
    """What sentencex takes for sentences.

    It looks for an initial behind white space of one byte, and panics at any other ("O\u00a0." in German).
    So it is given plain spaces instead.
    """
    start = 0
    for part in segment(language, SPACE.sub(" ", text)):
        yield text[start : start + len(part)]
        start += len(part)


def goes_on(before: str, after: str, language: str) -> bool:
    """Whether what sentencex took for the end of a sentence is none."""
    if LIST_NUMBER.search(before):  # "2. Wash hands."
        return True
    if language == "zh" and LATIN_STOP.search(before):  # "GOV.UK", "Dr. Smith", "Dr. 王" in a Chinese text
        return TITLE.search(before) is not None or not is_ideograph(after[0])
    return bool(ABBREVIATION.search(before) and CONTINUED.match(after))  # "tel. 0571", "Hx. of"


def cut(sentence: str, fits: Callable[[str], bool], level: int = 0) -> Iterator[str]:
    """The sentence in as few parts as `fits` allows, cut after clause marks, at spaces, else anywhere."""
    if len(sentence) < 2 or fits(sentence):
        yield sentence
    elif level == len(CLAUSE_ENDS):
        middle = between(sentence, len(sentence) // 2)
        yield from cut(sentence[:middle], fits, level)
        yield from cut(sentence[middle:], fits, level)
    else:
        part, start = "", 0
        ends = [match.end() for match in CLAUSE_ENDS[level].finditer(sentence)]
        for end in ends if ends[-1:] == [len(sentence)] else [*ends, len(sentence)]:
            clause = sentence[start:end]
            start = end
            if part and not fits(part + clause):
                yield from cut(part, fits, level + 1)
                part = ""
            part += clause
        yield from cut(part, fits, level + 1)


def between(text: str, at: int) -> int:
    """The nearest place up to `at`, else behind it, that divides no character from its accents, and no emoji.

    `at` itself where the text is all one such character.
    """
    return next(
        (place for place in (*range(at, 0, -1), *range(at, len(text))) if not joined(text, place)), at
    )


def joined(text: str, at: int) -> bool:
    return unicodedata.combining(text[at]) > 0 or JOINED.match(text[at - 1 : at + 1]) is not None


def spaced(pieces: Iterable[Piece], target_lang: str) -> Iterator[tuple[Piece, str]]:
    """Each piece with what it is copied as: one space between two sentences, and none in Chinese."""
    before, held = Piece(""), None
    for piece in pieces:
        if held:
            yield held, "" if piece.translate else held.text
            held = None
        elif piece.translate and before.text.strip() and target_lang != "zh":
            yield Piece(""), " "
        if piece.text == " " and before.translate and target_lang == "zh":
            held = piece
        else:
            yield piece, piece.text
        before = piece
    if held:
        yield held, held.text


def tidy(text: str, language: str) -> str:
    """An output as `language` is printed: wide marks and no spaces in Chinese, narrow marks elsewhere."""
    if language == "zh":
        text = NARROW_BRACKETS.sub(r"（\1）", text)
        text = NARROW_MARK.sub(lambda match: match[1].translate(WIDEN), text)
        return SPACE_IN_CHINESE.sub("", text)
    text = WIDE_MARK.sub(lambda match: match[1].translate(NARROW) + " ", text)
    return text.replace("（", " (").replace("）", ") ").replace("  ", " ").strip()


def settled(text: str, language: str) -> str:
    """What `tidy` of this output begins with, whatever the output goes on with: up to a letter or digit."""
    end = after_word(text, len(text))
    if language == "zh" and (opened := text.rfind("(", 0, end)) > text.rfind(")", 0, end):
        end = after_word(text, opened)
    return tidy(text[:end], language)


def after_word(text: str, end: int) -> int:
    """The last place up to `end` behind a letter or a digit."""
    while end and not text[end - 1].isalnum():
        end -= 1
    return end


def end_as(source: str, target: str, language: str) -> str:
    """The translation; that of a clause cut out of a sentence ends in Chinese with the clause's mark."""
    mark = source[-1:].translate(WIDEN)
    if language == "zh" and mark in "，；：" and target.endswith("。"):
        return target[:-1] + mark
    return target
