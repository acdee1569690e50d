"""Byte-level BPE (Qwen, Llama, HunYuan), through the package tokenizers; Marian's is edgemt/tokenizer.py.

The bundle's tokenizer.json is the checkpoint's without its added tokens: what a user types can then spell no
control token, and control tokens in an output leave no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from edgemt.text import LATIN, is_closing, well_formed


class BytePairs:
    """See `Tokenizer` in family.py."""

    unknown = -1  # bytes write everything

    def __init__(self, file: Path, control: Iterable[int]) -> None:
        from tokenizers import Tokenizer

        self.control = frozenset(control)
        self._tokenizer = Tokenizer.from_file(str(file))

    @cached_property
    def pieces(self) -> dict[int, str]:
        """The text of every piece, a space before it as `▁`; bytes that are no character are U+FFFD."""
        return {i: text for i, text in self._texts() if i not in self.control}

    def _texts(self) -> Iterator[tuple[int, str]]:
        byte = {char: number for number, char in byte_characters().items()}
        for piece, i in self._tokenizer.get_vocab().items():
            if all(char in byte for char in piece):
                text = bytes(byte[char] for char in piece).decode("utf-8", errors="replace")
                yield i, "▁" + text[1:] if text.startswith(" ") else text

    @cached_property
    def inner(self) -> frozenset[int]:
        return frozenset(i for i, piece in self.pieces.items() if LATIN.match(piece))

    @cached_property
    def words(self) -> frozenset[int]:
        return frozenset(i for i, piece in self.pieces.items() if LATIN.match(piece[-1:]))

    @cached_property
    def digits(self) -> frozenset[int]:
        return frozenset(i for i, piece in self.pieces.items() if len(piece) == 1 and piece in "0123456789")

    @cached_property
    def closing(self) -> frozenset[int]:
        return frozenset(i for i, piece in self.pieces.items() if is_closing(piece.removeprefix("▁").strip()))

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(well_formed(text), add_special_tokens=False).ids

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return self._tokenizer.encode(well_formed(text), add_special_tokens=False).offsets

    def encode_target(self, text: str) -> list[int]:
        """Ids of a text as it would stand at the start of an output."""
        return self.encode(text)

    def spellings(self, text: str, glued: bool, language: str) -> list[list[int]]:
        """With a space before it, and without at the start of an output or right behind a mark."""
        if not LATIN.match(text):
            return [self.encode(text)]
        found = [self.encode(f" {text}")]
        if glued or text[0].isupper() or language == "zh":
            found.append(self.encode(text))
        return found

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([i for i in ids if i not in self.control], skip_special_tokens=False)


def byte_characters() -> dict[int, str]:
    """Byte -> the character that stands for it in a vocabulary (GPT-2: printable ones for themselves)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [number for number in range(256) if number not in printable]
    return {number: chr(number) for number in printable} | {
        number: chr(256 + place) for place, number in enumerate(others)
    }
