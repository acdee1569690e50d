"""Critical errors: what counts, and above all what does not. Tables of real-looking sentences."""

from __future__ import annotations

import pytest

from edgemt.calibration.critical import facts, new_errors
from edgemt.calibration.numerals import normalise, numbers

READINGS = [  # language, text, values it surely states
    ("zh", "布洛芬400毫克，一天三次", "1 3 400"),
    ("zh", "一片半，八点半吃", "1.5 8 30"),
    ("zh", "体温三十八度五", "38.5"),
    ("zh", "体温38度5", "38.5"),
    ("zh", "两百五十毫升", "250"),
    ("zh", "一百零五", "105"),
    ("zh", "一百二", "120"),
    ("zh", "两万零五百", "20500"),
    ("zh", "350 万只口罩", "3500000"),
    ("zh", "5千克", "5"),
    ("zh", "百分之三十", "30"),
    ("zh", "三四天", "3 4"),
    ("zh", "十五六岁", "15 16"),
    ("zh", "二〇二四年", "2024"),
    ("zh", "20世纪30年代", "20 30 1930"),
    ("zh", "周三下午3点", "Wed 3"),
    ("zh", "半片", "0.5"),
    ("zh", "血压120/80", "120 80"),
    ("zh", "１２：３０", "12 30"),
    ("zh", "一般一点一样十分重要，千万别动四肢，二甲双胍，十二指肠", ""),
    ("zh", "新冠COVID-19", ""),
    ("en", "400 mg, three times a day", "3 400"),
    ("en", "one and a half tablets at half past eight", "1.5 8 30"),
    ("en", "an hour and a half", "1.5"),
    ("en", "a hundred and twenty-five", "125"),
    ("en", "two or three days", "2 3"),
    ("en", "1.5 million", "1500000"),
    ("en", "1,200 mL", "1200"),
    ("en", "eleven point six", "11.6"),
    ("en", "on Wednesday, May 3", "Wed 3 5"),
    ("en", "you may march", ""),
    ("en", "no one, this one, at once", ""),
    ("en", "one tablet once a day", "1"),
    ("en", "two thirds", "2 3"),
]


@pytest.mark.parametrize(("language", "text", "values"), READINGS)
def test_numbers_are_read_whatever_their_spelling(language: str, text: str, values: str) -> None:
    stated, possible = numbers(normalise(text), language)
    assert stated == set(values.split())
    assert stated <= possible


# source language, source, reference output, candidate output, what is new: "kind change value"
NEW = [
    ("zh", "每次吃三片。", "Take three tablets.", "Take the tablets.", "number lost 3"),
    ("zh", "每次400毫克。", "400 mg each time.", "40 mg each time.", "number changed 400 to 40"),
    ("zh", "每次5毫克。", "5 mg each time.", "5 g each time.", "unit changed mg to g"),
    (
        "zh",
        "我对青霉素不过敏。",
        "I am not allergic to penicillin.",
        "I am allergic to penicillin.",
        "negation lost not",
    ),
    ("zh", "他没有发烧。", "He has no fever.", "He has a fever.", "negation lost not"),
    ("zh", "可以吃鸡蛋。", "You can eat eggs.", "You can't eat eggs.", "negation added not"),
    (
        "zh",
        "左膝疼。",
        "My left knee hurts.",
        "My right knee hurts.",
        "laterality changed left to right",
    ),
    (
        "zh",
        "三天后复查。",
        "Come back in three days.",
        "Come back in three hours.",
        "unit changed day to hour",
    ),
    (
        "zh",
        "周三复查。",
        "Come back on Wednesday.",
        "Come back on Thursday.",
        "number changed Wed to Thu",
    ),
    ("en", "Do not eat.", "不要吃东西。", "吃东西。", "negation lost not"),
    ("en", "Take two tablets.", "吃两片。", "吃三片。", "number changed 2 to 3"),
    ("en", "It is in the left lung.", "在左肺。", "在右肺。", "laterality changed left to right"),
    ("en", "30 percent", "百分之三十", "百分之十三", "number changed 30 to 13"),
]
SAME = [  # another wording of the same meaning, or no worse than the reference
    ("zh", "每次吃三片。", "Take three tablets.", "3 tablets each time."),
    ("zh", "一天一次，一次一片。", "One tablet once a day.", "Take a tablet daily."),
    ("zh", "晚上8点来。", "Come at 8 p.m.", "Come at 20:00."),
    ("zh", "半小时后再测。", "Measure again in half an hour.", "Measure again after 30 minutes."),
    ("zh", "五毫升。", "Five mL.", "5 milliliters."),
    ("zh", "百分之三十。", "30 percent.", "30%"),
    (
        "zh",
        "他否认胸痛，没有发烧。",
        "He does not have chest pain or fever.",
        "He denies chest pain and fever.",
    ),
    ("zh", "他没有呼吸。", "He is not breathing.", "He stopped breathing."),
    ("zh", "我不舒服。", "I'm not well.", "I'm unwell."),
    ("zh", "是不是左边疼？", "Is it on the left side?", "Does your left side hurt?"),
    ("zh", "三十岁左右。", "About 30 years old.", "Aged around thirty."),
    ("zh", "不超过四片。", "Not more than four tablets.", "At most 4 tablets."),
    ("zh", "三月五日。", "March 5.", "the fifth of March"),
    ("zh", "今天有点疼。", "It hurts a bit, doesn't it?", "It hurts a little today."),
    ("zh", "有点疼。", "It hurts a bit.", "It hurts a bit, doesn't it?"),
    ("zh", "每次吃三片。", "Take some tablets.", "Take tablets."),  # the reference had lost it already
    ("zh", "每次吃三片。", "Take four tablets.", "Take five tablets."),  # both wrong
    ("en", "He is 35 years old.", "他三十五岁。", "他35岁。"),
    ("en", "Don't move.", "不要动。", "别动。"),
    ("en", "Turn left.", "向左转。", "左拐。"),
    ("en", "The right answer is all right.", "正确的答案没问题。", "正确答案可以。"),
    ("en", "You have two weeks left.", "你还有两周。", "你还剩14天。"),
    ("en", "COVID-19 is not flu.", "COVID-19不是流感。", "新冠并非流感。"),
    ("en", "No. 5 is not here.", "5号不在。", "5号没在这里。"),
]


def found(language: str, source: str, reference: str, candidate: str) -> set[str]:
    target = {"zh": "en", "en": "zh"}[language]
    errors = new_errors(facts(source, language), facts(reference, target), facts(candidate, target))
    return {f"{error.kind} {error.change} {error.fact}" for error in errors}


@pytest.mark.parametrize(("language", "source", "reference", "candidate", "expected"), NEW)
def test_a_changed_fact_is_found(
    language: str, source: str, reference: str, candidate: str, expected: str
) -> None:
    assert found(language, source, reference, candidate) == {expected}
    assert not found(language, source, candidate, reference), "the other way round it is repaired, not new"


@pytest.mark.parametrize(("language", "source", "reference", "candidate"), SAME)
def test_another_wording_is_no_error(language: str, source: str, reference: str, candidate: str) -> None:
    assert found(language, source, reference, candidate) == set()


@pytest.mark.parametrize(
    "text", ["", " ", "。", "🙂", "no", "不", "\n\t", "٣", "²", "½", "10⁹", "一" * 500, "1" * 500]
)
@pytest.mark.parametrize("language", ["zh", "en"])
def test_any_text_can_be_read(text: str, language: str) -> None:
    assert facts(text, language).stated <= facts(text, language).possible
