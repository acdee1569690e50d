"""Text to token ids and back, with the ids of the Marian tokenizer that the model was trained with.

SentencePiece cuts the text into pieces and `vocab.json` numbers them, as transformers' MarianTokenizer does;
the two .spm files may number pieces differently (OPUS-MT). What a user types never becomes a control token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

import sentencepiece

from edgemt.bundle import Bundle
from edgemt.text import LATIN, is_closing, well_formed

MARIAN_FILES = {"source": "source.spm", "target": "target.spm", "vocab": "vocab.json"}
UNKNOWN = "<unk>"
ANCHOR = {"zh": "，", "en": "("}  # a mark that is never part of a longer piece
CONTROL = re.compile(r"<unk>|<s>|</s>|<pad>|>>.+<<")


class Tokenizer:
    """Source text -> ids (no language prefix, no end), target ids -> text. Thread-safe."""

    def __init__(self, directory: Path, files: Mapping[str, str] = MARIAN_FILES) -> None:
        """`files` names the source and target SentencePiece models and the vocabulary inside `directory`."""
        source = (directory / files["source"]).read_bytes()
        target = (directory / files["target"]).read_bytes()
        self._source = sentencepiece.SentencePieceProcessor(model_proto=source)
        self._target = (
            self._source if source == target else sentencepiece.SentencePieceProcessor(model_proto=target)
        )
        self.ids: dict[str, int] = json.loads((directory / files["vocab"]).read_bytes())
        self.pieces: dict[int, str] = {index: piece for piece, index in self.ids.items()}
        self.unknown = self.ids[UNKNOWN]
        self.control = frozenset(i for p, i in self.ids.items() if p[:1] in "<>" and CONTROL.fullmatch(p))

    @classmethod
    def of(cls, bundle: Bundle) -> Tokenizer:
        return cls(bundle.directory, bundle.manifest.tokenizer)

    @cached_property
    def inner(self) -> frozenset[int]:
        """Ids of the pieces that go on with a word in Latin letters, or a number."""
        return frozenset(i for piece, i in self.ids.items() if LATIN.match(piece))

    @cached_property
    def words(self) -> frozenset[int]:
        """Ids of the pieces that end in a Latin letter or a digit."""
        return frozenset(i for piece, i in self.ids.items() if LATIN.match(piece[-1:]))

    @cached_property
    def digits(self) -> frozenset[int]:
        """Ids of single digits that go on with a number."""
        return frozenset(i for piece, i in self.ids.items() if re.fullmatch(r"[0-9]", piece))

    @cached_property
    def closing(self) -> frozenset[int]:
        """Ids of the pieces that end a sentence: nothing but marks, one of them a full stop or its like."""
        return frozenset(i for piece, i in self.ids.items() if is_closing(piece.removeprefix("▁")))

    def encode(self, text: str) -> list[int]:
        """Ids of a source text. What the vocabulary lacks becomes bytes where it has them, else unknown."""
        return self._encode(self._source, text)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where in a source text each of its ids stands: start and end, in characters."""
        return self._source.encode(well_formed(text), return_type="offset_mapping")["offsets"]

    def encode_target(self, text: str) -> list[int]:
        """Ids of a text as it would stand at the start of an output."""
        return self._encode(self._target, text)

    def spellings(self, text: str, glued: bool, language: str) -> list[list[int]]:
        """The ids that write `text` as a word of an output: with a space before it and, if `glued` or in
        Chinese, right behind a mark."""
        found = [self.encode_target(text)]
        if glued or language == "zh":
            anchor = ANCHOR.get(language, "(")
            mark, after = self.encode_target(anchor), self.encode_target(anchor + text)
            if after[: len(mark)] == mark:
                found.append(after[len(mark) :])
        return found

    def _encode(self, model: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
        pieces = model.encode(well_formed(text), out_type=str)
        ids = (self.ids.get(piece, self.unknown) for piece in pieces)
        return [self.unknown if i in self.control else i for i in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of output ids. Control tokens leave no trace; bytes that are no UTF-8 become U+FFFD."""
        pieces = [self.pieces.get(i, "") for i in ids if i not in self.control]
        return self._target.decode_pieces(pieces).replace("▁", " ").strip()
