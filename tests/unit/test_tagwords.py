"""A tag that the model lost goes around the words that it was around, where these can be told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_markup import TREES, shape, short

from edgemt.markup import Part, parts
from edgemt.tagwords import found_again, only


def tagged(text: str) -> Part:
    (part,) = [part for part in parts(text, "zh", "en", short()) if part.sentence]
    return part


def written(text: str, answer: str, *spoken: str) -> str:
    part = tagged(text)
    assert part.sentence
    target, places = part.sentence.read(answer)
    lost = set(part.sentence.all) - set(places)
    places = found_again(part.sentence, target, places, lost, lambda words: [words, *spoken])
    return part.sentence.write(target, places, part.escaped)


@pytest.mark.parametrize(
    ("answer", "spoken", "expected"),
    [
        ("See a doctor, then 38.5 again.", ["The doctor."], "See a <b>doctor</b>, then <i>38.5</i> again."),
        ("Doctor, 38.5.", ["a doctor"], "<b>Doctor</b>, <i>38.5</i>."),
        ("<s1>See</s1> a doctor, 38.5.", ["doctor"], "<b>See</b> a doctor, <i>38.5</i>."),  # not lost
        # Which of the two?
        ("A doctor's doctor, 38.5.", ["doctor"], "<b></b>A doctor's doctor, <i>38.5</i>."),
        ("A doctorate, 138.5.", ["doctor"], "<b>A doctorate, 138.5.</b><i></i>"),  # inside other words
        ("<s2>A doctor</s2>, 38.5.", ["doctor"], "<b></b><i>A doctor</i>, 38.5."),  # another tag is there
        ("A doctor, 38.5.", ["", ".", "physician"], "<b></b>A doctor, <i>38.5</i>."),
    ],
)
def test_words_are_found_again(answer: str, spoken: list[str], expected: str) -> None:
    assert written("看<b>医生</b>，再量<i>38.5</i>。", answer, *spoken) == expected


def test_an_inner_tag_is_found_within_its_outer_one() -> None:
    text = "请<a>看<b>医生</b>吧</a>好。"
    assert written(text, "Do <s1>see a doctor</s1>.", "doctor") == "Do <a>see a <b>doctor</b></a>."
    assert written(text, "Doctor, <s1>see him</s1>.", "doctor") == "Doctor, <a><b>see him</b></a>."


def test_a_word_is_looked_for_without_what_is_said_around_it() -> None:
    assert only("The heart.", "Of the Heart, twice") == (5, 10, False, False)
    assert only("the", "a the b") == (1, 4, False, False)
    assert only("  ", "a") is None and only("b", "a") is None


@given(TREES, st.lists(st.sampled_from(["Ja", " nein", ".", " ", "120/80", "two"]), max_size=8).map("".join))
@settings(max_examples=300)
def test_tags_come_back_once_and_nested_whatever_is_found(text: str, answer: str) -> None:
    def spoken(words: str) -> list[str]:
        return [words, answer[:4], answer[4:6], "two", "120"]

    def translated() -> Iterator[str]:
        for part in parts(text, "en", "zh", short()):
            if part.sentence is None:
                yield part.target
            else:
                sentence = part.sentence
                places = found_again(sentence, answer, {}, sentence.all, spoken)
                yield sentence.write(answer, places, part.escaped)

    assert shape("".join(translated())) == shape(text)
