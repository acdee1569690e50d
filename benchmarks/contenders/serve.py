"""What the contenders share: the text work around a model, and the loop from stdin to stdout.

It imports nothing that its user has not asked for: cold start and memory are measured of what stands here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

EOS = "</s>"


class Text:
    """SentencePiece around a checkpoint's or a contender's folder (source.spm, and target.spm if it differs).

    With `sentences`, texts are cut into sentences of at most that many tokens and tidied up after translation
    by edgemt's own code, so that every engine gets the same sentences; without, a text is taken whole.
    """

    def __init__(self, folder: Path, sentences: int | None) -> None:
        import sentencepiece

        source, target = folder / "source.spm", folder / "target.spm"
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(source))
        same = source.read_bytes() == target.read_bytes()
        self.target = self.model if same else sentencepiece.SentencePieceProcessor(model_file=str(target))
        self.sentences = sentences

    def tokens(self, text: str, target_lang: str) -> list[str]:
        """The pieces of the source as the model wants them: target language first, end last."""
        return [f">>{target_lang}<<", *self.model.encode(text, out_type=str), EOS]

    def translate(
        self, text: str, source_lang: str, target_lang: str, model: Callable[[list[str]], list[str]]
    ) -> str:
        """The translation of `text`; `model` turns the tokens of one sentence into those of the other."""

        def one(sentence: str) -> str:
            pieces = model(self.tokens(sentence, target_lang))
            return self.target.decode_pieces(pieces).replace("▁", " ").strip()

        if self.sentences is None:
            return one(text)
        from edgemt import text as texts
        from edgemt.text import spaced

        most = self.sentences

        def fits(part: str) -> bool:
            return len(self.model.encode(part)) <= most

        out = []
        for piece, copied in spaced(texts.pieces(text, source_lang, fits), target_lang):
            if piece.translate and texts.has_letters_of(piece.text, source_lang):
                target = texts.tidy(one(piece.text), target_lang)
                out.append(texts.end_as(piece.text, target, target_lang))
            else:
                out.append(copied)
        return "".join(out)


def limit(tokens: list[str], positions: int) -> int:
    """The most tokens to generate for a source of these, its end included: edgemt's rule."""
    return min(2 * len(tokens) + 16, positions)


def loop(translate: Callable[[str, str, str], str]) -> None:
    """Answer each line of stdin (source_lang, target_lang, text; tabs between) with a line, at once."""
    for line in sys.stdin:
        source_lang, target_lang, text = line.rstrip("\n").split("\t", 2)
        print(" ".join(translate(text, source_lang, target_lang).splitlines()), flush=True)
