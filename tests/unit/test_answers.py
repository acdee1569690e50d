"""Chatter around a translation goes, a translation never does; what is streamed is never taken back."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgemt import text
from edgemt.answers import clean, doubt, repeated, settled, unlooped, unrepeated
from edgemt.prompts import prompt

# Words that chatter is made of, among others.
WORDS = st.sampled_from(
    [*["Translation", "translation:", "译文：", "翻译", "英语翻译:", "[English]", "(en)", "Note:", "注："],
     *["“", "”", "'", "<target>", "</target>", "<source>", "</source>", "</", "Here is", "以下是", "sure"],
     *["translate the following", "explanation.\n", "\n", "\n\n", " ", ":", "：", "He", "疼", "很", "*"],
     *["(", ")", "，", ",", "。", ".", "**", "将以下", "```", '"', "5.5 mg"]]
)  # fmt: skip
ANSWERS = st.lists(WORDS | st.text(max_size=3), max_size=12).map("".join)
LANGUAGES = st.sampled_from(["zh", "en"])


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ("Translation: He has a fever.", "他发烧了。"),
        ("**Translation:** He has a fever.", "他发烧了。"),
        ("English: He has a fever.", "他发烧了。"),
        ("[English] He has a fever.", "他发烧了。"),
        ("翻译：He has a fever.", "他发烧了。"),
        ('"He has a fever."', "他发烧了。"),
        ("“He has a fever.”", "他发烧了。"),
        ("```\nHe has a fever.\n```", "他发烧了。"),
        ("```text\nHe has a fever.", "他发烧了。"),
        ("<target>He has a fever.</target>", "他发烧了。"),
        ("He has a fever.</target> I kept the tags.", "他发烧了。"),
        ("He has a fever.\n\nNote: 发烧 is a fever.", "他发烧了。"),
        ("He has a fever.\n(注：发烧即 fever)", "他发烧了。"),
        ("Here is the translation:\n\nHe has a fever.", "他发烧了。"),
        ("以下是翻译结果：\nHe has a fever.", "他发烧了。"),
        ("他发烧了。\nHe has a fever.", "他发烧了。"),
        (prompt("他发烧了。", "zh", "en") + "\n\nHe has a fever.", "他发烧了。"),
        ('Here is the translation:\n\n"He has a fever."\n\nI hope this helps!', "他发烧了。"),
        ("He has\na fever.", "他发烧了。"),
    ],
)
def test_chatter_goes(answer: str, source: str) -> None:
    assert clean(answer, source) == "He has a fever."


@pytest.mark.parametrize(
    ("answer", "source"),
    [
        ("Translation: Dr Wang", "翻译：王医生"),
        ('"It hurts," he said.', "“很疼，”他说。"),
        ('"It hurts"', "“很疼”"),
        ('"It hurts"', "《很疼》"),
        ("(English) is taught.", "（英语）要上课。"),
        ("Translation is hard.", "翻译很难。"),
        ("English is hard: really.", "英语真的很难。"),
        ("Here is the bill: 5.", "这是账单5。"),
        ("Sure, come in.", "好的，请进。"),
        ("'Tis the patient's 'own' wish", "这是病人自己的愿望"),
        ("Write <target>x</target>.", "写<target>x</target>。"),
        ("Note: no food.", "注意禁食。"),
        ("```ls```", "```ls```"),
    ],
)
def test_a_translation_stays(answer: str, source: str) -> None:
    assert clean(answer, source) == answer


def test_no_translation_of_the_corpus_changes(clinical_pairs: list[tuple[str, str]]) -> None:
    """Real translations, of which some have labels, quotations, brackets and notes."""
    for zh, en in clinical_pairs:
        assert clean(en, zh) == en.strip()
        assert clean(zh, en) == zh.strip()


@given(ANSWERS)
@example("```translation:")
def test_what_is_the_source_stays(source: str) -> None:
    assert clean(source, source.strip()) == source.strip() or "\r" in source


@given(ANSWERS, ANSWERS, LANGUAGES)
@example("Translation:", "a", "en")
@example("a</target> b", "x", "en")
@example("(a b) c", "x", "zh")
@example("好 (好 ,", "x", "zh")
def test_what_is_settled_stays(answer: str, source: str, language: str) -> None:
    """So a stream shows nothing that it would have to take back."""
    whole = text.end_as(source, text.tidy(clean(answer, source), language), language)
    shown = ""
    for end in range(len(answer) + 1):
        now = text.settled(settled(answer[:end], source), language)
        assert now.startswith(shown) and whole.startswith(now), (answer[:end], now, whole)
        shown = now


def test_a_plain_answer_is_settled_word_by_word() -> None:
    words = ["He", "has", "had", "a", "fever", "since", "this", "morning."]
    shown = [text.settled(settled(" ".join(words[:n]), "他今早起发烧。"), "en") for n in range(1, len(words))]
    assert shown == ["", *(" ".join(words[:n]) for n in range(2, len(words)))]  # "He" may become "Here is"


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        ([1, 2, 3] + [7, 8] * 9, [1, 2, 3, 7, 8]),
        ([1, 2, 3] + [7, 8] * 9 + [7], [1, 2, 3, 7, 8]),
        ([5] * 40, [5]),
        ([1, 2, 3, 3, 3], [1, 2, 3, 3, 3]),  # "ha ha ha" is short enough to be meant
        (list(range(40)), list(range(40))),
        (list(range(12)) * 2, list(range(12)) * 2),  # twice is no loop
        ([], []),
    ],
)
def test_loops_are_cut_to_one_turn(tokens: list[int], kept: list[int]) -> None:
    assert list(unlooped(tokens)) == kept


@given(
    st.lists(st.integers(0, 2), max_size=6),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.integers(1, 12),
)
def test_what_a_loop_may_take_is_not_shown(before: list[int], turn: list[int], times: int) -> None:
    tokens = before + turn * times
    kept = unlooped(tokens)
    assert list(kept) == tokens[: len(kept)]
    for end in range(len(tokens) + 1):
        assert unrepeated(tokens[:end]) <= len(kept)


@pytest.mark.parametrize(
    ("target", "language", "expected"),
    [
        ("", "en", "empty"),
        (" ", "zh", "empty"),
        ("He has a fever.", "en", ""),
        ("他发烧了。", "en", "script"),
        ("He has a fever.", "zh", "script"),
        ("CT", "zh", ""),
        ("阿司匹林 100 mg qd", "zh", ""),
        ("熱があります。", "ja", ""),
        ("120/80", "zh", ""),
    ],
)
def test_what_is_wrong_at_a_glance(target: str, language: str, expected: str) -> None:
    assert doubt(target, language) == expected


def test_translations_raise_few_doubts(clinical_pairs: list[tuple[str, str]]) -> None:
    doubted = [en for _, en in clinical_pairs if doubt(en, "en")] + [
        zh for zh, _ in clinical_pairs if doubt(zh, "zh")
    ]
    assert len(doubted) <= 0.001 * len(clinical_pairs), doubted


@given(st.lists(st.integers(0, 2), max_size=20))
def test_how_often_an_end_was_said_before(tokens: list[int]) -> None:
    for period, found in enumerate(repeated(tokens)[1:], 1):
        same = [a == b for a, b in zip(tokens[period:], tokens, strict=False)][::-1]
        assert found == (same.index(False) if False in same else len(same))


def test_a_long_loop_is_seen_at_once() -> None:
    began = time.perf_counter()
    assert all(unrepeated([1] * length) == 1 for length in range(1, 800))
    assert unlooped([1, 2] * 400) == (1, 2)
    assert time.perf_counter() - began < 2  # it was seven seconds
