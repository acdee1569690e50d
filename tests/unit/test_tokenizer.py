"""The device's tokenizer gives the ids that the model was trained with, and never a control id."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import CHECKPOINT

from edgemt.tokenizer import Tokenizer

LINES = 10_000
CONTROL_TEXTS = [">>en<<", ">>zh<<", "</s>", "<pad>", "<unk>", "<s>", "<0x41>", "a</s>b", ">>en<< 你好 </s>"]


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return Tokenizer(vocabulary)


@pytest.fixture(scope="module")
def renumbered(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pieces under other ids, as in OPUS-MT models, and without the bytes."""
    directory = tmp_path_factory.mktemp("renumbered")
    shutil.copytree(vocabulary, directory, dirs_exist_ok=True)
    ids = json.loads((vocabulary / "vocab.json").read_text(encoding="utf-8"))
    pieces = [piece for piece in ids if not piece.startswith(("<0x", "<", ">>"))]
    random.Random(3).shuffle(pieces)
    numbered = {piece: i for i, piece in enumerate(["</s>", "<unk>", *pieces, ">>en<<", ">>zh<<", "<pad>"])}
    (directory / "vocab.json").write_text(json.dumps(numbered), encoding="utf-8")
    return directory


def assert_same_as_transformers(directory: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """Source ids, target ids and decoded text equal those of transformers' MarianTokenizer."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.MarianTokenizer.from_pretrained(directory)
    tokenizer = Tokenizer(directory)
    for zh, en in pairs:
        assert tokenizer.encode(zh) == reference(zh)["input_ids"][:-1], zh
        target = reference(text_target=en)["input_ids"][:-1]
        assert tokenizer.encode_target(en) == target, en
        spelt = reference.decode(target, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(target) == spelt


def test_ids_equal_the_training_tokenizer(vocabulary: Path, clinical_pairs: list[tuple[str, str]]) -> None:
    assert_same_as_transformers(vocabulary, clinical_pairs[: LINES // 2])


def test_ids_equal_where_the_vocabulary_is_numbered_otherwise(
    renumbered: Path, clinical_pairs: list[tuple[str, str]]
) -> None:
    assert_same_as_transformers(renumbered, clinical_pairs[-1000:])


def test_ids_of_the_shipped_checkpoint(clinical_pairs: list[tuple[str, str]]) -> None:
    if not (CHECKPOINT / "vocab.json").is_file():
        pytest.skip("the checkpoint is not committed yet")
    assert_same_as_transformers(CHECKPOINT, clinical_pairs[-LINES // 2 :])


def test_ids_are_sentencepiece_ids_in_a_joint_vocabulary(tokenizer: Tokenizer, vocabulary: Path) -> None:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary / "source.spm"))
    text = "术后复查血常规，体温38.5℃。 Take 5.5 mg 𠮷☃"
    assert tokenizer.encode(text) == model.encode(text)


@pytest.mark.parametrize("text", CONTROL_TEXTS)
def test_control_tokens_cannot_be_typed(tokenizer: Tokenizer, renumbered: Path, text: str) -> None:
    for found in (tokenizer, Tokenizer(renumbered)):
        ids = found.encode(text)
        assert not set(ids) & (found.control - {found.unknown})
    assert "".join(tokenizer.decode(tokenizer.encode(text)).split()) == "".join(text.split())


def test_typed_byte_names_are_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.ids["<0x41>"] not in tokenizer.encode("<0x41>")


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_encoded(vocabulary: Path, text: str) -> None:
    tokenizer = shared(vocabulary)
    ids = tokenizer.encode(text)
    assert not set(ids) & (tokenizer.control - {tokenizer.unknown})
    tokenizer.decode(ids).encode()


@given(st.lists(st.integers(-5, 4000)))
def test_any_ids_can_be_decoded(vocabulary: Path, ids: list[int]) -> None:
    text = shared(vocabulary).decode(ids)
    text.encode()
    assert not any(name in text for name in (">>en<<", ">>zh<<", "</s>", "<pad>"))


@given(st.text(st.characters(categories=["Lo", "Lu", "Ll", "Nd"], max_codepoint=0x9FFF), max_size=40))
def test_letters_come_back(vocabulary: Path, text: str) -> None:
    import unicodedata

    folded = unicodedata.normalize("NFKC", text)
    assert unicodedata.normalize("NFKC", shared(vocabulary).decode(shared(vocabulary).encode(text))) == folded


def test_normal_text_comes_back(tokenizer: Tokenizer, clinical_pairs: list[tuple[str, str]]) -> None:
    for text in (
        "我对青霉素过敏。",
        "The dose is 5.5 mg (twice a day).",
        "血压120/80 mmHg，无异常。",
        "☃ 𠮷 🙂",
    ):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    lost = [
        text
        for pair in clinical_pairs[::20]
        for text in pair
        if tokenizer.decode(tokenizer.encode(text)) != text
    ]
    assert len(lost) < 0.02 * len(clinical_pairs[::20])  # odd spaces and wide letters, which are normalised


def test_bytes_that_are_no_character(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.ids[f"<0x{byte:02X}>"] for byte in (0xE4, 0x41, 0xFF, 0xE4, 0xBD, 0xA0)]
    assert tokenizer.decode(ids) == "\ufffdA\ufffd你"


_shared: dict[Path, Tokenizer] = {}


def shared(vocabulary: Path) -> Tokenizer:
    """One tokenizer for all examples of a property."""
    if vocabulary not in _shared:
        _shared[vocabulary] = Tokenizer(vocabulary)
    return _shared[vocabulary]
