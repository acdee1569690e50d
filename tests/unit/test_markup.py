"""HTML and XML: nothing is lost, tags come back once and nested as they were, whatever the translation is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from html import unescape

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgemt.htmltokens import tokens_of
from edgemt.markup import Part, parts, words
from edgemt.tags import Place, Tagged, moved, solid

NAMES = st.sampled_from(["b", "i", "a", "span", "p", "div", "li", "drug", "code", "pre"])
ATTRIBUTES = st.sampled_from(
    ["", " id=x", ' href="a?b=1&amp;c"', " title='<b>'", ' translate="no"', "\n class = q "]
)
PLAIN = st.sampled_from(
    [*["He has a fever. ", "Take two", " tablets", ".", "。", "他发烧了。", "请", "\n  ", " ", "120/80"],
     *["&amp;", "&lt;s1&gt;", "&nbsp;", "&foo;", "&#20320;", "AT&T", "<s1>", "</target>", "{text}", "a < b"]]
)  # fmt: skip
SINGLE = st.sampled_from(
    ["<br>", "<br/>", "<img src=x>", "<hr>", "<!-- a <b> c -->", "<x/>", "<?php 1 ?>", "<!doctype html>"]
)
STRAY = st.sampled_from(
    ["<b>", "</i>", "</p>", "<", "&", "<!", "<![x[", "</>", "<a b", "<script>", "-->", "\ufeff"]
)


def element(inside: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(lambda name, more, text: f"<{name}{more}>{text}</{name}>", NAMES, ATTRIBUTES, inside)


def joined(*kinds: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.one_of(*kinds), max_size=6).map("".join)


TREES = st.recursive(
    joined(PLAIN, SINGLE), lambda inside: joined(PLAIN, SINGLE, element(inside)), max_leaves=12
)
SOUP = joined(TREES, STRAY, SINGLE, PLAIN)
# What a model may say: words, numbered tags of every kind, and nothing.
TAGS = ["<s1>", "</s1>", "<s2>", "</s2>", "<s3/>", "<s9>", "< s2 >", "<s3></s3>"]
SAID = st.lists(st.sampled_from(["Ja", " nein", ".", " ", "好", *TAGS]), max_size=10).map("".join)


def short(limit: int = 60) -> Callable[[str], bool]:
    return lambda text: len(text) <= limit


def translated(text: str, say: Callable[[str], str], limit: int = 60) -> str:
    """The text with each sentence as `say` makes it of its numbered form."""
    out = []
    for part in parts(text, "en", "zh", short(limit)):
        if part.sentence is None:
            out.append(part.target)
        else:
            target, places = part.sentence.read(say(part.sentence.text()))
            out.append(part.sentence.write(target.strip(), places, part.escaped))
    return "".join(out)


def shape(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Every tag, comment and the like of a text with the elements it is in, sorted."""
    found: list[tuple[str, tuple[str, ...]]] = []
    around: list[str] = []
    for token in tokens_of(text):
        raw = text[token.start : token.end]
        if token.kind == "text":
            continue
        if token.kind == "close" and token.partner >= 0:
            around.pop()
        found.append((raw, tuple(around)))
        if token.kind == "open" and token.partner >= 0:
            around.append(raw)
    return sorted(found)


@given(SOUP, st.integers(1, 60))
@settings(max_examples=300)
def test_nothing_of_any_text_is_lost(text: str, limit: int) -> None:
    tokens = tokens_of(text)
    assert "".join(text[token.start : token.end] for token in tokens) == text
    found = list(parts(text, "en", "zh", short(limit)))
    assert "".join(part.source for part in found) == text
    said = translated(text, lambda asked: asked, limit)
    assert Counter(raw for raw, _ in shape(text)) <= Counter(raw for raw, _ in shape(said)) or "<" in words(
        text
    )


@given(TREES, st.lists(SAID, min_size=1, max_size=5), st.integers(5, 80))
@settings(max_examples=500)
@example("Take <b>two <i>x</i></b> tablets.", ["<s2>Ja</s2> <s1>nein</s1>"], 60)
@example("<b>He has a fever. Take</b> two.", ["Ja"], 5)
@example("foo <b> bar.</b> He <code>x</code> has.", ["Ja <s1>nein</s1> <s2/>"], 60)
def test_every_tag_comes_back_once_and_nested_as_it_was(text: str, answers: list[str], limit: int) -> None:
    turn = iter(answers * 1000)
    said = translated(text, lambda _: next(turn), limit)
    assert shape(said) == shape(text)


@given(TREES, st.integers(5, 80))
@settings(max_examples=300)
def test_with_an_answer_that_is_the_question_the_text_is_what_it_was(text: str, limit: int) -> None:
    """But for white space and for how characters are written."""
    said = translated(text, lambda asked: asked, limit)
    assert solid(unescape(said)) == solid(unescape(text))


def tagged(text: str) -> Part:
    (part,) = [part for part in parts(text, "zh", "en", short()) if part.sentence]
    return part


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("<p>患者需<b>立即</b>手术。</p>", "患者需<s1>立即</s1>手术。"),
        ("<p><b>患者需立即手术。</b></p>", "患者需立即手术。"),  # tags around all of it stay around it
        ("<b><i>注意</i></b>饮食。", "<s1>注意</s1>饮食。"),  # one number for what is one place
        ("第一行<br/><br/>第二行", "第一行<s1></s1>第二行"),
        ("运行<code>ls -l</code>即可。", "运行<s1></s1>即可。"),
        ("服用<drug>阿司匹林</drug>。", "服用<s1>阿司匹林</s1>。"),
        ("键入 &lt;s1&gt; 和<b>回车</b>。", "键入 <s1> 和<s2>回车</s2>。"),
        ("血压&nbsp;&gt;&nbsp;<b>140</b>。", "血压\xa0>\xa0<s1>140</s1>。"),
        ("多行\n    的<b>一</b>句。", "多行 的<s1>一</s1>句。"),
    ],
)
def test_what_a_model_is_asked(text: str, asked: str) -> None:
    part = tagged(text)
    assert part.sentence and part.sentence.text() == asked


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("See a <s1>doctor</s1> <s2>now</s2>.", "See a <b>doctor</b> <i>now</i>."),
        ("<s2>Now</s2> see a <s1>doctor</s1>.", "<i>Now</i> see a <b>doctor</b>."),
        ("See a doctor <s2>now</s2>.", "<b></b>See a doctor <i>now</i>."),  # lost: to the nearer end
        ("See a doctor now.", "<b>See a doctor now.</b><i></i>"),
        ("See <s1>a <s2>doctor</s1> now</s2>.", "See <b>a doctor</b> now.<i></i>"),  # crossed: the first wins
        ("See <s1>a</s1> <s1>doctor</s1> <s2>now</s2>.", "<b></b>See a doctor <i>now</i>."),
        ("See a <s1>doctor</s1> <s2>now</s2><s7>.", "See a <b>doctor</b> <i>now</i>."),
        ("</s1>See a doctor <s2>now</s2>.", "<b></b>See a doctor <i>now</i>."),
        ("See a < s1 >doctor</ s1> <s2>now & here</s2>.", "See a <b>doctor</b> <i>now &amp; here</i>."),
        ("", "<b></b><i></i>"),
    ],
)
def test_what_becomes_of_an_answer(answer: str, expected: str) -> None:
    part = tagged("去看<b>医生</b>，要<i>马上</i>。")
    assert part.sentence
    target, places = part.sentence.read(answer)
    assert part.sentence.write(target, places, part.escaped) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Do <s1>see <s2>a doctor</s2></s1>.", 'Do <a href="x">see <b>a doctor</b></a>.'),
        ("Do <s2>see <s1>a doctor</s1></s2>.", 'Do see <a href="x"><b>a doctor</b></a>.'),
        ("Do see <s2>a doctor</s2>.", '<a href="x">Do see <b>a doctor</b>.</a>'),
        ("Do <s1>see</s1> a doctor.", 'Do <a href="x"><b>see</b></a> a doctor.'),
    ],
)
def test_nested_tags_stay_nested(answer: str, expected: str) -> None:
    part = tagged('请<a href="x">看<b>医生</b>吧</a>好。')
    assert part.sentence
    target, places = part.sentence.read(answer)
    assert part.sentence.write(target, places, part.escaped) == expected


def test_white_space_around_what_has_no_text() -> None:
    part = tagged("运行 <code>ls</code> 吧。")
    assert part.sentence
    target, places = part.sentence.read("Run <s1></s1> now.")
    assert part.sentence.write(" ".join(target.split()), places, part.escaped) == "Run <code>ls</code> now."


def test_tags_move_with_the_text() -> None:
    places = {1: Place(3, 5)}
    assert moved(places, "ab c,de", "ab c，de") == places
    assert moved(places, "abcdef", "xyzabcdef") == {1: Place(6, 8)}


def test_known_and_unknown_elements() -> None:
    text = "<note><to>Ann</to><msg>Take <drug>aspirin</drug> now.</msg></note>"
    asked = [part.sentence.text() for part in parts(text, "en", "zh", short()) if part.sentence]
    assert asked == ["Ann", "Take <s1>aspirin</s1> now."]


@pytest.mark.parametrize(
    "kept",
    [
        "<script>if (a<b) { x = '<p>Hi there</p>' }</script>",
        "<style>p > b { color: red }</style>",
        "<pre>Take two\n  tablets</pre>",
        "<p translate=no>Take two</p>",
        "<!-- Take two -->",
        "<!DOCTYPE html>",
        '<?xml version="1.0"?>',
        "<![CDATA[ Take <b>two</b> ]]>",
        '<img alt="Take two">',
    ],
)
def test_what_is_no_text_is_not_touched(kept: str) -> None:
    found = list(parts(f"<div>{kept}</div>\n", "en", "zh", short()))
    assert [(part.source, part.target, part.sentence) for part in found] == [
        (f"<div>{kept}</div>\n",) * 2 + (None,)
    ]


def test_sentences_that_a_tag_reaches_across_are_one() -> None:
    text = "<p>He has <b>a fever. Take</b> two. Good.</p>"
    asked = [part.sentence.text() for part in parts(text, "en", "zh", short()) if part.sentence]
    assert asked == ["He has <s1>a fever. Take</s1> two.", "Good."]
    asked = [part.sentence.text() for part in parts(text, "en", "zh", short(20)) if part.sentence]
    assert asked == ["He has", "a fever.", "Take", "two.", "Good."]  # too long for one: cut at the tags


def test_deep_nesting_and_many_tags_end() -> None:
    deep = "<b>" * 3000 + "Take two" + "</b>" * 3000 + "</i>" * 3000
    assert translated(deep, lambda asked: asked) == deep
    assert shape(translated("<i>a</i> b " * 400, lambda _: "x", 10**6)) == shape("<i>a</i> b " * 400)


def test_the_language_is_that_of_the_words() -> None:
    assert words('<p class="an english word">他&amp;她</p><br>').split() == ["他&她"]


def test_a_user_s_numbered_tags_are_text() -> None:
    sentence = Tagged("键入 <s1> 和 </s2>", [])
    assert sentence.read("Type <s1> and </s2>") == ("Type <s1> and </s2>", {})
