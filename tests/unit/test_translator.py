"""The translator keeps a text's shape, finds the direction, serves many threads; toy and real bundle."""

from __future__ import annotations

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import edgemt
from edgemt.bundle import MANIFEST, read_manifest, seal
from edgemt.errors import EdgemtError, UsageError
from edgemt.translator import Translator

PARAGRAPH = "患者男性，六十岁。\r\n\n　　今晨跌倒，左髋疼痛。无法站立！ \n\t120/80\n😀\n"


@pytest.fixture(scope="module")
def toy(toy_bundle: Path) -> Translator:
    return edgemt.load(toy_bundle)


@pytest.fixture(scope="module")
def real(default_bundle: Path) -> Translator:
    return edgemt.load(default_bundle)


def test_lines_and_white_space_stay(toy: Translator) -> None:
    output = toy.translate(PARAGRAPH)
    lines = output.split("\n")
    assert len(lines) == PARAGRAPH.count("\n") + 1
    assert lines[0].endswith("\r") and lines[1] == ""
    assert lines[2].startswith("　　") and lines[2].endswith(" ")
    assert lines[3:] == ["\t120/80", "😀", ""]


def test_segments_in_a_row_are_the_translation(toy: Translator) -> None:
    segments = list(toy.segments(PARAGRAPH))
    assert "".join(segment.target for segment in segments) == toy.translate(PARAGRAPH)
    assert "".join(segment.source for segment in segments) == PARAGRAPH
    translated = [segment for segment in segments if segment.translated]
    assert [segment.source for segment in translated] == [
        "患者男性，六十岁。",
        "今晨跌倒，左髋疼痛。",
        "无法站立！",
    ]
    for segment in translated:
        assert segment.direction == "zh-en"
        assert segment.source_tokens == len(toy.tokenizer.encode(segment.source))
        assert segment.target_tokens >= 0 and segment.ms > 0


def test_sentences_are_joined_as_the_target_language_does(toy: Translator) -> None:
    english = [segment.target for segment in toy.segments("好的。再见。", target_lang="en")]
    assert english[1] == " " and len(english) == 3
    chinese = [segment.target for segment in toy.segments("Good. Bye.", target_lang="zh")]
    assert chinese[1] == "" and len(chinese) == 3


def test_empty_and_letterless_texts(toy: Translator) -> None:
    for text in ("", " ", "\n\n", "120/80", "…… 😀\n"):
        assert toy.translate(text) == text


def test_what_is_in_the_target_language_already_is_copied(toy: Translator) -> None:
    text = "Dr. Smith\nCT 3\n"
    assert toy.translate(text, source_lang="zh", target_lang="en") == text
    assert toy.translate("已经是中文。", target_lang="zh") == "已经是中文。"


def test_direction(toy: Translator) -> None:
    assert toy.direction("我头疼。", None, None) == ("zh", "en")
    assert toy.direction("My head hurts.", None, None) == ("en", "zh")
    assert toy.direction("My head hurts.", "ZH_cn", None) == ("zh", "en")
    assert toy.direction("", None, "zh-Hans") == ("en", "zh")


@pytest.mark.parametrize(("source", "target"), [("zh", "de"), ("fr", None), (None, "de"), ("zh", "zh")])
def test_languages_that_the_bundle_lacks(toy: Translator, source: str | None, target: str | None) -> None:
    with pytest.raises(UsageError, match=r"does not translate .*; it has zh to en, en to zh"):
        toy.translate("好。", source_lang=source, target_lang=target)


def test_a_direction_that_the_script_does_not_tell(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    manifest = read_manifest(bundle / MANIFEST)
    seal(bundle, dataclasses.replace(manifest, languages=[["en", "de"], ["de", "en"]]))
    translator = edgemt.load(bundle)
    with pytest.raises(UsageError, match="the direction is not clear from the text; give --from and --to"):
        translator.translate("Hallo")
    assert translator.direction("Hallo", "de", None) == ("de", "en")


def test_an_unknown_family(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    seal(bundle, dataclasses.replace(read_manifest(bundle / MANIFEST), family="telepathy"))
    with pytest.raises(
        EdgemtError, match="the family telepathy, and this edgemt runs seq2seq, causal; upgrade"
    ):
        edgemt.load(bundle)


def test_many_sentences_at_once(toy: Translator, clinical_pairs: list[tuple[str, str]]) -> None:
    sentences = [zh for zh, _ in clinical_pairs[:40]] + ["", "好" * 500]
    together = toy.translate_many(sentences, "zh", "en", batch=7)
    alone = [toy.translate_many([sentence], "zh", "en")[0] for sentence in sentences]
    assert len(together) == len(sentences)
    assert (
        sum(a == b for a, b in zip(together, alone, strict=True)) >= len(sentences) - 1
    )  # a tie may fall otherwise


def test_many_are_what_one_by_one_gives(toy: Translator, clinical_pairs: list[tuple[str, str]]) -> None:
    alike = [zh for zh, _ in clinical_pairs[:40] if sum(map(zh.count, "。！？；")) == 1]
    texts = [
        *alike,
        "",
        " \n",
        "120/80",
        "  我头疼。\r\n",
        "CT 3",
        "患者昨天做了手术，恢复得很好" * 30,
        alike[0],
    ]
    assert len(alike) > 10
    assert toy.translate_many(texts, "zh", "en", batch=7) == [
        toy.translate(text, source_lang="zh") for text in texts
    ]
    segments = toy.segments_many(texts, "zh", "en")
    assert ["".join(part.source for part in parts) for parts in segments] == texts
    assert all(part.ms > 0 for part in segments[0] if part.translated)


def test_threads_share_one_translator(toy: Translator, clinical_pairs: list[tuple[str, str]]) -> None:
    sentences = [side for pair in clinical_pairs[40:60] for side in pair]
    one_by_one = [toy.translate(sentence) for sentence in sentences]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(toy.translate, sentences)) == one_by_one


def test_beam_search_finds_no_worse_hypotheses(
    toy: Translator, clinical_pairs: list[tuple[str, str]]
) -> None:
    text = "\n".join(zh for zh, _ in clinical_pairs[60:80])
    narrow = [segment.score for segment in toy.segments(text, beam=2) if segment.score is not None]
    wide = [segment.score for segment in toy.segments(text, beam=8) if segment.score is not None]
    assert len(narrow) == len(wide) and sum(wide) > sum(narrow)


def test_long_sentences_lose_nothing(toy: Translator) -> None:
    text = "患者昨天做了手术，恢复得很好" * 30
    segments = list(toy.segments(text))
    assert "".join(segment.source for segment in segments) == text
    assert all(segment.source_tokens <= toy.bundle.manifest.model.max_positions for segment in segments)


def test_the_bundle_may_say_how_long_a_sentence_its_model_likes(toy_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    manifest = read_manifest(bundle / MANIFEST)
    seal(bundle, dataclasses.replace(manifest, generation={"beam": 2, "max_source_tokens": 8}))
    segments = list(edgemt.load(bundle).segments("患者今晨在家跌倒，左髋疼痛，不能站立。"))
    assert len([segment for segment in segments if segment.translated]) >= 2
    assert all(segment.source_tokens <= 8 for segment in segments)


def test_half_characters_do_not_stop_it(toy: Translator) -> None:
    toy.translate("好\ud800。").encode()
    toy.translate_many(["\udfff好"], "zh", "en")[0].encode()


def test_control_tokens_in_the_text_choose_no_direction(toy: Translator) -> None:
    segment = next(toy.segments(">>zh<< 我头疼。", target_lang="en"))
    assert segment.direction == "zh-en" and ">>" in segment.source


@pytest.mark.parametrize(
    ("text", "glossary"),
    [
        ("手术应在无菌环境下进行。", {"手术": "surgery", "无菌": "sterile"}),
        ("Surgery needs a sterile field.", {"surgery": "手术", "sterile": "无菌"}),
        ("做CT。", {"ct": "CT scan"}),
    ],
)
def test_glossary_terms_appear(toy: Translator, text: str, glossary: dict[str, str]) -> None:
    segment = next(toy.segments(text, glossary=glossary))
    assert segment.missing == ()
    for term in glossary.values():
        assert term.lower() in segment.target.lower(), segment.target


def test_glossary_terms_that_do_not_occur_change_nothing(toy: Translator) -> None:
    assert toy.translate("我头疼。", glossary={"手术": "surgery"}) == toy.translate("我头疼。")


def test_the_default_bundle_translates(real: Translator) -> None:
    english = real.translate("我对青霉素过敏。")
    assert "allerg" in english and "penicillin" in english
    chinese = real.translate("I am allergic to penicillin.")
    assert "过敏" in chinese and "青霉素" in chinese


def test_the_acceptance_example(real: Translator) -> None:
    english = real.translate("手术应在无菌环境下进行。", glossary={"手术": "surgery", "无菌": "sterile"})
    assert "surgery" in english.lower() and "sterile" in english.lower()
    assert english[0].isupper() and english.endswith(".") and 4 <= len(english.split()) <= 14
