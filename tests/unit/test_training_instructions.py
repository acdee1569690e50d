"""What a causal model is asked in training: only what is certain, and the same at every run."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from causal_fixtures import clinical_pairs, clinical_terms
from hypothesis import given
from hypothesis import strategies as st

from edgemt.errors import UsageError
from edgemt.prompts import prompt, translation_in
from edgemt.training.config import Prompts
from edgemt.training.data import Pairs
from edgemt.training.instructions import Terms, instructions, read_terms, wrap

ALL = Prompts(terminology=1, context=1, formatted=1)
TAG = re.compile(r"</?s\d+>")


def ask(pairs: Pairs, mix: Prompts, terms: Terms | None = None, seed: int = 1) -> list[tuple[str, str]]:
    found = instructions(pairs, range(len(pairs.corpus)), [0, 1], terms, mix, seed)
    return [(example.prompt, example.answer) for example in found]


def one_pair(zh: str, en: str, document: str = "") -> Pairs:
    return Pairs(("zh", "en"), ["c"], ([zh], [en]), [document])


def test_without_a_mix_the_prompts_are_plain() -> None:
    asked = ask(one_pair("我头疼。", "My head hurts."), Prompts(terminology=0, context=0, formatted=0))
    assert asked == [
        (prompt("我头疼。", "zh", "en"), "My head hurts."),
        (prompt("My head hurts.", "en", "zh"), "我头疼。"),
    ]


def test_a_term_is_given_only_where_it_stands_on_both_sides() -> None:
    terms = Terms([("手术", "surgery"), ("手术", "operation"), ("感染", "infection")])
    mix = Prompts(terminology=1, context=0, formatted=0)
    (forth, _), (back, _) = ask(
        one_pair("手术后没有发炎。", "The Operation led to no infections."), mix, terms
    )
    assert forth.startswith("参考下面的翻译：\n手术 翻译成 operation\n\n将以下文本翻译为英语")
    assert back.startswith("参考下面的翻译：\noperation 翻译成 手术\n\n将以下文本翻译为中文")
    assert "参考" not in ask(one_pair("他很好。", "He had surgery."), mix, terms)[0][0]


def test_the_longest_term_is_taken_and_none_inside_it() -> None:
    terms = Terms([("高血压", "hypertension"), ("血压", "blood pressure")])
    found = list(terms.find(("高血压患者的血压。", "Blood pressure in hypertension.")))
    assert [(pair, there) for pair, _, there in found] == [
        (("高血压", "hypertension"), (18, 30)),
        (("血压", "blood pressure"), None),  # 血压 stands twice, once inside 高血压: not certain
    ]


def test_context_is_the_lines_before_in_the_document() -> None:
    pairs = Pairs(
        ("zh", "en"),
        ["c"] * 5,
        (["一。", "二。", "甲。", "三。", "四。"], ["One.", "Two.", "A.", "Three.", "Four."]),
        ["d", "d", "", "d", "e"],
    )
    mix = Prompts(terminology=0, context=1, context_lines=2, formatted=0)
    asked = ask(pairs, mix)
    contexts = [question.split("\n参考上面")[0] if "参考上面" in question else "" for question, _ in asked]
    assert [contexts[0], contexts[1], contexts[4], contexts[5], contexts[8]] == [""] * 5
    assert contexts[2:4] == ["一。", "One."]
    assert contexts[6] in ("二。", "一。\n二。") and contexts[7] in ("Two.", "One.\nTwo.")


def test_tags_surround_what_is_certain() -> None:
    terms = Terms([("阿司匹林", "aspirin")])
    mix = Prompts(terminology=0, context=0, formatted=1)
    pair = one_pair("阿司匹林每天100毫克，共3片，一片。", "Aspirin 100 mg daily, 3 tablets.")
    spans = set()
    for seed in range(40):
        question, answer = ask(pair, mix, terms, seed)[0]
        source = question.split("<source>")[-1].removesuffix("</source>")
        target = translation_in(answer, markup=True)
        assert answer == f"<target>{target}</target>"
        assert (TAG.sub("", source), TAG.sub("", target)) == (pair.texts[0][0], pair.texts[1][0])
        for number in re.findall(r"<s(\d+)>", source):
            inside = [re.search(f"<s{number}>(.*?)</s{number}>", text) for text in (source, target)]
            assert inside[0] and inside[1]
            spans.add((inside[0][1], inside[1][1]))
    assert spans == {("阿司匹林", "Aspirin"), ("100", "100"), ("3", "3")}


def test_without_a_certain_span_the_whole_sentence_is_tagged() -> None:
    asked = ask(one_pair("我头疼。", "My head hurts."), Prompts(terminology=0, context=0, formatted=1))
    assert asked[0][0].endswith("<source><s1>我头疼。</s1></source>")
    assert asked[0][1] == "<target><s1>My head hurts.</s1></target>"
    asked = ask(one_pair("血压<120。", "BP <120."), Prompts(terminology=0, context=0, formatted=1))
    assert "<source>" not in asked[0][0]  # what looks like a tag is not mixed with tags


def test_real_lines_are_asked_as_the_mix_says_and_always_the_same() -> None:
    pairs, terms = clinical_pairs(400), Terms(clinical_terms())
    mix = Prompts(terminology=0.5, context=0.3, formatted=0.2)
    asked = ask(pairs, mix, terms)
    assert asked == ask(pairs, mix, terms) != ask(pairs, mix, terms, seed=2)
    of_row = list(instructions(pairs, [7], [1], terms, mix, 1))  # whatever else is asked
    assert (of_row[0].prompt, of_row[0].answer) == asked[2 * 7 + 1]
    share = {
        word: sum(word in question for question, _ in asked) / len(asked) for word in ("参考上面", "<source>")
    }
    assert 0.2 < share["参考上面"] < 0.35 and 0.15 < share["<source>"] < 0.25
    with_terms = sum(question.startswith("参考下面") for question, _ in asked)
    allowed = sum(bool(list(terms.find((zh, en)))) for zh, en in zip(*pairs.texts, strict=True))
    assert 0.35 < with_terms / (2 * allowed) < 0.65
    for (question, answer), (zh, en) in zip(asked[::2], zip(*pairs.texts, strict=True), strict=True):
        plain = TAG.sub("", translation_in(answer, "<source>" in question))
        assert plain == en and zh in TAG.sub("", question)


@given(text=st.text(st.characters(exclude_characters="<>")), cuts=st.lists(st.integers(0, 30), max_size=6))
def test_tags_leave_the_text(text: str, cuts: list[int]) -> None:
    places = sorted({min(cut, len(text)) for cut in cuts})
    spans = list(pairwise(places))[::2]
    assert TAG.sub("", wrap(text, spans)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("en\tzh\nhead\t头\n", "line 1: write zh, tab, en"),
        ("zh\ten\n头\thead\n手\n", "line 3: write two terms"),
        ("zh\ten\n头\t \n", "line 2: write two terms"),
        ("", "line 1: write zh, tab, en"),
    ],
)
def test_a_broken_list_of_terms_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "terms.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=re.escape(f"{path}, {message}")):
        read_terms(path, ("zh", "en"))
    assert read_terms(tmp_path / "none.tsv", ("zh", "en")) is None
