"""The SentencePiece vocabulary of a Marian student: how it is trained, and written for Hugging Face.

Token ids: `</s>` 0, `<unk>` 1, `<pad>` 2, one control symbol `>>xx<<` a language, the 256 bytes, the pieces.
Control symbols never come out of user text, so a text that spells `>>en<<` cannot choose its own direction.
"""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

EOS, UNK, PAD = 0, 1, 2

# Chinese marks that NFKC would turn into ASCII, and signs whose folding changes what a text says.
KEPT_MARKS = frozenset("，：；！？（）～…⋯℃℉‰")
# `10⁹` is not `109`, `1½` is not `11/2`, and `①` is not the number 1.
KEPT_DECOMPOSITIONS = ("<super>", "<sub>", "<fraction>", "<circle>")
SPACES = frozenset({"Zs", "Zl", "Zp", "Cc"})
INVISIBLE = frozenset({"Cf"})


def normalisation_rules() -> Iterator[tuple[int, str]]:
    """Each BMP code point that is rewritten, and what it becomes (source: Python's unicodedata)."""
    for code in range(1, 0x10000):
        char = chr(code)
        category = unicodedata.category(char)
        if category in SPACES:
            if char != " ":
                yield code, " "
        elif category in INVISIBLE:
            yield code, ""
        elif category not in ("Cs", "Cn", "Co"):
            folded = unicodedata.normalize("NFKC", char)
            spacing_accent = " " in folded  # `´` would become a space and a combining mark
            kept = char in KEPT_MARKS or unicodedata.decomposition(char).startswith(KEPT_DECOMPOSITIONS)
            if folded != char and not kept and not spacing_accent:
                yield code, folded


def write_normalisation_rules(path: Path) -> None:
    """The rules in SentencePiece's form: hexadecimal code points, a tab, hexadecimal code points."""
    with path.open("w", encoding="ascii") as file:
        for code, replacement in normalisation_rules():
            file.write(f"{code:X}\t{' '.join(f'{ord(c):X}' for c in replacement)}\n")


def language_token(language: str) -> str:
    return f">>{language}<<"


def train_vocabulary(sentences: Iterable[str], directory: Path, languages: Sequence[str], size: int) -> None:
    """Train a joint unigram vocabulary of `size` pieces and write a Marian checkpoint's tokenizer files."""
    directory.mkdir(parents=True, exist_ok=True)
    rules = directory / "normalisation.tsv"
    write_normalisation_rules(rules)
    model = directory / "source.spm"
    with model.open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=writer,
            model_type="unigram",
            vocab_size=size,
            byte_fallback=True,
            split_digits=True,  # a dose is copied digit by digit, seen before or not
            character_coverage=0.9993,
            normalization_rule_tsv=str(rules),
            eos_id=EOS,
            unk_id=UNK,
            pad_id=PAD,
            bos_id=-1,
            control_symbols=[language_token(language) for language in languages],
            num_threads=1,
            minloglevel=2,
        )
    (directory / "target.spm").write_bytes(model.read_bytes())
    write_huggingface_files(directory)


def write_huggingface_files(directory: Path) -> None:
    """`vocab.json` (piece to SentencePiece's id) and `tokenizer_config.json`, beside the .spm files."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "source.spm"))
    pieces = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    (directory / "vocab.json").write_text(json.dumps(pieces, ensure_ascii=False, indent=0), encoding="utf-8")
    config = {
        "tokenizer_class": "MarianTokenizer",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "model_max_length": 256,
        "separate_vocabs": False,
        "source_lang": None,
        "target_lang": None,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


TOKENIZER_FILES = ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of one directory into another."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, target / name)
