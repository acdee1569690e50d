"""A search that meets a glossary's constraint has its terms as words, with either kind of tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemt.bpe import BytePairs
from edgemt.export.chat import read_chat
from edgemt.glossary import Wanted
from edgemt.text import tidy
from edgemt.tokenizer import Tokenizer
from edgemt.training.chat_tokenizer import train_chat_tokenizer


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return Tokenizer(vocabulary)


@pytest.fixture(scope="module")
def byte_pairs(tmp_path_factory: pytest.TempPathFactory, clinical_pairs: list[tuple[str, str]]) -> BytePairs:
    directory = tmp_path_factory.mktemp("chat")
    train_chat_tokenizer([side for pair in clinical_pairs[:200] for side in pair], directory, 900)
    chat = read_chat(directory)
    (directory / "plain.json").write_text(chat.byte_pairs, encoding="utf-8")
    return BytePairs(directory / "plain.json", chat.control)


TERMS = st.dictionaries(
    st.sampled_from(["surgery", "CT", "Holter", "Holters", "5 mg", "naïve", "手术", "A型CT", "IL-6"]),
    st.booleans(),
    min_size=1,
    max_size=2,
)


@pytest.mark.parametrize("kind", ["marian", "byte pairs"])
@given(terms=TERMS, to=st.sampled_from(["en", "zh"]), picks=st.lists(st.integers(0, 1 << 30), max_size=14))
@settings(max_examples=300)
def test_what_meets_the_constraint_has_the_terms_as_words(
    tokenizer: Tokenizer, byte_pairs: BytePairs, kind: str, terms: dict[str, bool], to: str, picks: list[int]
) -> None:
    """Behind whatever comes before them: glued to no other word, and part of no longer one."""
    known = tokenizer if kind == "marian" else byte_pairs
    wanted = Wanted(terms, to, known)
    others = known.encode("The surgery, (CT) surgeryCT non-surgery Xsurgery 15 mg. 做手术A")
    others += [i for spellings in wanted.terms.values() for spelling in spellings for i in spelling]
    constraint, ids = wanted.constraint(), list[int]()
    for pick in picks:
        candidates = constraint.candidates()
        pool = candidates if candidates and pick & 1 else others
        ids.append(pool[(pick >> 1) % len(pool)])
        constraint = constraint.advance(ids[-1])
        if not constraint.missing:
            assert wanted.check(tidy(known.decode(ids), to))[1] == ()
