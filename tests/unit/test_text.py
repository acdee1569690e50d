"""Splitting loses nothing, cuts where a reader would, and keeps what is not language out of the model."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgemt import text
from edgemt.answers import clean
from edgemt.text import Piece

TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \t\r\n。！？；，.!?;,1a的“”()"))
)


def short(limit: int = 1000) -> text.Callable[[str], bool]:
    return lambda part: len(part) <= limit


def sentences(string: str, language: str, limit: int = 1000) -> list[str]:
    return [piece.text for piece in text.pieces(string, language, short(limit)) if piece.translate]


@given(TEXTS, st.sampled_from(["zh", "en", "de"]), st.integers(1, 30))
@example(": A", "zh", 1)
@example("O\u00a0.\u0082PM", "de", 1)
def test_nothing_is_lost(string: str, language: str, limit: int) -> None:
    pieces = list(text.pieces(string, language, short(limit)))
    assert "".join(piece.text for piece in pieces) == string
    for piece in pieces:
        assert piece.text
        if piece.translate:
            assert piece.text == piece.text.strip() and "\n" not in piece.text
            assert len(piece.text) <= limit


@given(TEXTS)
def test_letters_are_always_translated(string: str) -> None:
    for piece in text.pieces(string, "zh", short()):
        assert piece.translate == text.has_letters(piece.text)


@pytest.mark.parametrize(
    ("string", "language", "expected"),
    [
        ("The dose is 5.5 mg. Dr. Smith agreed. K was 3.5 mmol/L.", "en", 3),
        ("Pt. c/o chest pain. Hx. of DM. No. 5 bed is free.", "en", 3),
        ("1. Wash hands. 2. Put on gloves.", "en", 2),
        ("Call tel. 0571-5550 now. Max. number of 5.", "en", 2),
        ('He said "It hurts." Then he left.', "en", 2),
        ("Give it at 3 p.m. on Monday. Take it b.i.d. for 5 days.", "en", 2),
        ("钾3.5 mmol/L。剂量5.5 mg。", "zh", 2),
        ("Dr. Smith来了。请访问GOV.UK。", "zh", 2),
        ("他说：“很疼。”然后走了。", "zh", 2),
        ("体温38.5度；血压120/80。", "zh", 1),
        ("你好吗？好！真的?!", "zh", 3),
        ("印象：1. 肺炎；2. 高血压。", "zh", 1),
        ("头还疼……不过好多了。", "zh", 1),
    ],
)
def test_sentence_ends(string: str, language: str, expected: int) -> None:
    assert len(sentences(string, language)) == expected, sentences(string, language)


def test_white_space_is_kept_apart() -> None:
    pieces = list(text.pieces("\u3000\u3000好。 \r\n\r\n\tIt hurts.  Since when?\n", "en", short()))
    assert pieces == [
        Piece("\u3000\u3000"), Piece("好。", True), Piece(" \r\n"), Piece("\r\n"), Piece("\t"),
        Piece("It hurts.", True), Piece("  "), Piece("Since when?", True), Piece("\n"),
    ]  # fmt: skip


def test_table_cells_are_translated_apart() -> None:
    assert sentences("姓名\t年龄\t\t诊断", "zh") == ["姓名", "年龄", "诊断"]


@pytest.mark.parametrize("string", ["120/80", "……", "😀👍", "1 2 3", "---", "3.5×10⁹", "①"])
def test_what_has_no_letters_passes_through(string: str) -> None:
    assert sentences(string, "zh") == []


def test_long_sentences_are_cut_at_the_best_marks() -> None:
    assert sentences("患者男性，六十岁；今晨跌倒，左髋疼痛。", "zh", 12) == [
        "患者男性，六十岁；",
        "今晨跌倒，左髋疼痛。",
    ]
    assert sentences("患者男性，六十岁；今晨跌倒。", "zh", 6) == ["患者男性，", "六十岁；", "今晨跌倒。"]
    assert sentences("one two three four", "en", 9) == ["one two", "three", "four"]
    assert sentences("x" * 20, "en", 6) == ["x" * 5] * 4


def test_a_long_line_takes_linear_time() -> None:
    line = "患者昨天做了手术，恢复得很好。" * 20_000  # 300,000 characters; sentencex alone needs four seconds
    assert len(sentences(line, "zh")) == 20_000


@pytest.mark.parametrize(
    ("string", "language"),
    [
        ("我对青霉素过敏。", "zh"),
        ("I am allergic to penicillin.", "en"),
        ("患者服用 amoxicillin clavulanate potassium 后皮疹", "zh"),
        ("WBC 18.6×10⁹/L，CRP 112 mg/L，白蛋白29 g/L。", "zh"),
        ("The patient 王小明 has a fever.", "en"),
        ("CT", "en"),
        ("做CT", "zh"),
        ("한국어입니다", "en"),  # not Chinese: that is all that is asked here
        ("120/80 😀", None),
        ("", None),
    ],
)
def test_language_from_the_script(string: str, language: str | None) -> None:
    assert text.language_of(string) == language


def test_language_of_the_clinical_corpus(clinical_pairs: list[tuple[str, str]]) -> None:
    with_letters = [(zh, en) for zh, en in clinical_pairs if text.language_of(zh) and text.language_of(en)]
    wrong = [pair for pair in with_letters if tuple(map(text.language_of, pair)) != ("zh", "en")]
    assert len(with_letters) > 0.99 * len(clinical_pairs)
    assert len(wrong) <= 2, wrong


@pytest.mark.parametrize(
    ("output", "language", "expected"),
    [
        ("我 对 青霉素 过敏.", "zh", "我对青霉素过敏。"),
        ("体温38.5度, 血压 120/80 (高). CT 正常!", "zh", "体温38.5度，血压 120/80（高）。CT 正常！"),
        ("每次5.5 mg, 每日2次", "zh", "每次5.5 mg, 每日2次"),
        ("He said，yes。Then（later）go.", "en", "He said, yes. Then (later) go."),
        ("It is 3.5 mmol/L, fine.", "en", "It is 3.5 mmol/L, fine."),
    ],
)
def test_output_looks_as_the_language_is_printed(output: str, language: str, expected: str) -> None:
    assert text.tidy(output, language) == expected


def test_a_clause_ends_as_a_clause() -> None:
    assert text.end_as("If it hurts,", "如果疼。", "zh") == "如果疼，"
    assert text.end_as("It hurts.", "疼。", "zh") == "疼。"
    assert text.end_as("如果疼，", "If it hurts.", "en") == "If it hurts."


@given(st.text())
def test_half_characters_are_replaced(string: str) -> None:
    assert text.well_formed(string) == string
    assert text.well_formed(string + "\ud800") == string + "\ufffd"


@given(
    st.lists(
        st.sampled_from(["e\u0301", "疼", "👩\u200d👩\u200d👦", "👍🏽", "❤\ufe0f", "ไม่"]),
        min_size=1,
        max_size=40,
    )
)
@example(["e\u0301"] * 9)
def test_a_cut_divides_no_character_that_a_reader_sees(characters: list[str]) -> None:
    parts = list(text.cut("".join(characters), short(8)))
    assert "".join(parts) == "".join(characters) and max(map(len, parts)) <= 8
    for part in parts:
        assert not unicodedata.combining(part[0]) and part[0] not in "\u200d\ufe0f🏽" and part[-1] != "\u200d"


@pytest.mark.parametrize("mark", ["，", "; ", ", ", " "])
def test_a_long_line_without_an_end_is_cut_between_words(mark: str) -> None:
    line = mark.join(["Appendicitis"] * 900)
    found = list(text.blocks(line))
    assert "".join(found) == line and len(found) > 1 and max(map(len, found)) <= text.BLOCK
    assert all(part.endswith(mark) for part in found[:-1])


@pytest.mark.parametrize(
    "answer", ["a" + " " * 60_000 + "b", "疼" + " " * 60_000 + "b", "```\n" + " " * 60_000 + "b"]
)
def test_a_long_run_of_spaces_takes_no_time(answer: str) -> None:
    began = time.perf_counter()
    for language in ("en", "zh"):
        text.tidy(clean(answer, "疼。"), language)
    assert time.perf_counter() - began < 2  # it was half a minute


def test_marks_with_spaces_between_them() -> None:
    assert text.tidy("a ， ， b  （c） （d）", "en") == "a, , b  (c)  (d)"
