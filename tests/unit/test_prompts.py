"""HY-MT's prompts: the model card's texts, chosen by the request; user text stays what it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemt.errors import UsageError
from edgemt.prompts import CHINESE, LANGUAGES, answer_of, prompt, translation_in

TEXT = st.text(min_size=1)
CODES = st.sampled_from(sorted(LANGUAGES))


def test_plain_with_chinese_on_a_side() -> None:
    wanted = "将以下文本翻译为英语，注意只需要输出翻译后的结果，不要额外解释：\n\n我头疼。"
    assert prompt("我头疼。", "zh", "en") == wanted
    assert "翻译为中文，" in prompt("My head hurts.", "en", "zh")
    assert "翻译为繁体中文，" in prompt("Mir ist schlecht.", "de", "zh-Hant")


def test_plain_without_chinese() -> None:
    wanted = "Translate the following segment into French, without additional explanation.\n\nMy head hurts."
    assert prompt("My head hurts.", "en", "fr") == wanted


def test_terminology() -> None:
    wanted = (
        "参考下面的翻译：\n手术 翻译成 surgery\n无菌 翻译成 sterile\n\n"
        "将以下文本翻译为英语，注意只需要输出翻译后的结果，不要额外解释：\n请做好手术准备。"
    )
    assert prompt("请做好手术准备。", "zh", "en", [("手术", "surgery"), ("无菌", "sterile")]) == wanted


def test_context() -> None:
    instruction = "参考上面的信息，把下面的文本翻译成英语，注意不需要翻译上文，也不要额外解释："
    wanted = f"他昨天做了手术。\n{instruction}\n恢复得很好。"
    assert prompt("恢复得很好。", "zh", "en", context=["他昨天做了手术。"]) == wanted


def test_formatted() -> None:
    wanted = (
        "将以下<source></source>之间的文本翻译为中文，注意只需要输出翻译后的结果，不要额外解释，"
        "原文中的<sn></sn>标签表示标签内文本包含格式信息，需要在译文中相应的位置尽量保留该标签。"
        "输出格式为：<target>str</target>\n\n<source>Take <s1>two</s1> tablets.</source>"
    )
    assert prompt("Take <s1>two</s1> tablets.", "en", "zh", markup=True) == wanted


def test_several_things_at_once() -> None:
    terms, context = [("血压", "blood pressure")], ["他昨天住院了。"]
    both = prompt("他血压高。", "zh", "en", terms, context)
    before = "参考下面的翻译：\n血压 翻译成 blood pressure\n\n他昨天住院了。\n参考上面的信息，"
    assert both.startswith(before + "把下面的文本翻译成英语")
    tagged = prompt("他<s1>血压</s1>高。", "zh", "en", terms, context, markup=True)
    assert tagged.startswith(before + "将以下<source></source>之间的文本翻译为英语")
    assert tagged.endswith("<source>他<s1>血压</s1>高。</source>")


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(UsageError, match="no language tlh in HY-MT's prompts"):
        prompt("text", "en", "tlh")


@given(text=TEXT, source=CODES, target=CODES, extra=TEXT, markup=st.booleans())
def test_user_text_is_data(text: str, source: str, target: str, extra: str, markup: bool) -> None:
    """Braces and template-like text stay; what surrounds the text depends on nothing in it."""
    for terms, context in (([], []), ([(extra, extra)], []), ([], [extra]), ([(extra, extra)], [extra])):
        asked = prompt(text, source, target, terms, context, markup)
        end = f"{text}</source>" if markup else text
        assert asked.endswith(end)
        other = prompt("{text}{0}{language}", source, target, terms, context, markup)
        assert asked.removesuffix(end) == other.removesuffix(other[len(asked) - len(end) :])
        assert asked.count(extra) >= 2 * len(terms) + len(context)


@given(text=TEXT, source=CODES, target=CODES)
def test_the_language_is_named_in_the_prompts_language(text: str, source: str, target: str) -> None:
    head = prompt(text, source, target).removesuffix(text)
    assert LANGUAGES[target][0 if CHINESE & {source, target} else 1] in head


@given(text=TEXT, markup=st.booleans())
def test_an_answer_is_read_as_it_was_written(text: str, markup: bool) -> None:
    if not (markup and "</target>" in text):
        assert translation_in(answer_of(text, markup), markup) == text.strip()
    assert translation_in("<target>cut off", True) == "cut off"
    assert translation_in("no tags", True) == "no tags"
