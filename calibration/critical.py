"""Critical errors of a medical translation: numbers, units, negation, left and right.

A text is reduced to facts, in two readings: *stated* (what it surely says) and *possible* (what it may say
in other words: "denies pain" has no "not", yet it negates). A candidate has a new critical error where a
fact is

- lost: the source and the reference translation both state it, and the candidate cannot mean it; or
- added: the candidate states it, neither source nor reference can mean it, and the reference added none.

So another wording of the same meaning does not count, nor what the reference had wrong already. Facts are
sets: which number belongs to which noun, or a second negation in a sentence, is beyond this check.

The lexicon is the tables below; numbers are read by `edgemt.calibration.numerals`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from edgemt.calibration.numerals import ZH_CHAR, normalise, numbers

LANGUAGES = ("zh", "en")
KINDS = ("number", "unit", "negation", "laterality")


class Unit(NamedTuple):
    """Patterns of one unit. Symbols count after a digit in both languages, Chinese words after a number;
    the loose words only make it possible."""

    symbols: str
    zh: str
    en: str
    zh_loose: str = "$^"
    en_loose: str = "$^"


UNITS = {
    "mg": Unit("mg", "毫克", "milligrams?"),
    "µg": Unit("[μu]g|mcg", "微克", "micrograms?"),
    "kg": Unit("kgs?", "千克|公斤", "kilos?|kilograms?", "斤", "pounds?"),
    "g": Unit("g", "(?<![毫微千分])克", "grams|grammes", "$^", "gram"),
    "mL": Unit("mls?|cc", "毫升", "millilit(?:er|re)s?"),
    "L": Unit("l", "(?<![毫分])升(?![了到高至级温])|公升", "lit(?:er|re)s?"),
    "km": Unit("kms?", "公里|千米", "kilomet(?:er|re)s?"),
    "m": Unit("m", "(?<![毫厘分微纳公千])米", "met(?:er|re)s", "$^", "met(?:er|re)"),
    "cm": Unit("cms?", "厘米|公分", "centimet(?:er|re)s?"),
    "mm": Unit("mm", "毫米(?!汞)", "millimet(?:er|re)s?(?! of)"),
    "mmHg": Unit("mm ?hg", "毫米汞柱", "millimet(?:er|re)s? of mercury"),
    "mmol": Unit("mmol", "毫摩尔", "millimoles?"),
    "IU": Unit("iu", "个?(?:国际)?单位", "(?<=\\d )units?", "单位", "units?"),
    "%": Unit("%", "%", "percent|per cent", "百分|[成折]", "percentage"),
    "degree": Unit("°[cf]?", "(?:摄氏)?度", "degrees?", "烧", "celsius|fahrenheit|temperature|fever"),
    "second": Unit("secs?", "秒", "seconds", "$^", "second"),
    "minute": Unit(
        "mins?",
        "分钟",
        r"(?<!a )(?<!the )(?<!last )minutes?(?! of)",
        "分|刻|小时",
        "minutes?|hours?|quarter|half|:|'",
    ),
    "hour": Unit("h|hrs?", "小时|个?钟头", "hours?", "点|时|分钟|半天", "hourly|o'clock|:|minutes?|day"),
    "day": Unit(
        "d", "天", "days?", "[日号昼夜晚早今明昨]|周", r"daily|today|tonight|\w+day|night\w*|morning|weeks?"
    ),
    "week": Unit(
        "w",
        "周(?![岁一二三四五六日围])|个?(?:星期|礼拜)(?![一二三四五六日天])",
        "weeks?",
        "周|星期|礼拜|[七14]天|半个?月",
        r"weekly|fortnight\w*|weekend|days",
    ),
    "month": Unit("mo", "个月", "months?", "月|周|半年|岁", "monthly|weeks|years?"),
    "year": Unit(
        "yrs?",
        r"(?<!\d\d\d\d)年(?![级纪春夏秋冬])",
        "years?",
        "年|岁|个月",
        "yearly|annual|annually|aged?|months",
    ),
}

NEGATION_ZH = "不|没|无|未|勿|别|禁止|严禁|并非|否认"
NOT_NEGATION_ZH = (  # questions (是不是, 吃了没有?) and words that deny nothing
    r"(\w)[不没]\1|没有?(?=[吗么?]|$)|不(?=[,，。！!？?、])|(?<=[，,。])不(?=[，,])"
    "|不[但仅只光错久论如妨等时]|不过(?![敏量期分夜来去度])|不断(?![奶药])|不管(?![用理])|不止(?![血痛疼])|不同(?!意)|无论|无[线菌创机糖名]|未[来婚]|别[人的处致墅名]"
    "|[特区性级个分类告差辨识鉴]别|不好意思|差不多|对不起|要不|不得了|了不起|[巴恨]不得|不得不|好不容易|说不定"
    "|没[关准事]|除非|非常|动不动|不一样|不间断|看见没有"
)
POSSIBLE_NEGATION_ZH = (
    "[不没无未勿别禁非否免莫忌拒戒避停缺阴失少难才]|最多|至多|至少|以内|以上|以下|之前|直到"
)

NEGATION_EN = (
    r"\b(?:not|cannot|never|without|none|nothing|nobody|neither|nor)\b|n't\b|\bno\b(?![.,:;!?]| ?\d)"
)
NOT_NEGATION_EN = (  # tags and questions that expect yes, answers, set phrases
    r", (?:\w+n't|not) (?:\w+ )?\w+\?|(?:^|[.!?,;] )\w+n't (?:you|he|she|it|they|we|i|there|this|that|the)\b"
    r"|\b(?:not only|nothing but|why not|why \w+n't|or not|not bad|can't wait)\b"
    r"|\bno (?:problem|doubt|wonder|matter|worries|more than|less than|later than)\b"
)
POSSIBLE_NEGATION_EN = (
    r"\b(?:no|not|un(?!der|til|it|iq|ion|iv|cle)\w+|non\w*|\w+less|den(?:y|ies|ied|ial)|avoid\w*|stop\w*|refus\w*"
    r"|fail\w*|lack\w*|absen\w+|free|negative\w*|prohibit\w*|forb\w+|ban|banned|prevent\w*|rather|instead|hardly"
    r"|barely|rarely|seldom|scarcely|few|little|except|unless|until|keep|quit|cease\w*|withh\w+|too|contraindicated"
    r"|exclud\w+|ruled? out|refrain\w*|ignor\w+|lost|nil|less|skip\w*|gone|differ\w+|doubt\w*|up to|at most"
    r"|at least|maximum|minimum|within|before|only|stay|illegal|dis(?:a|c|l|r)\w+"
    r"|im(?:poss|mob|proper|matur|perf)\w+"
    r"|in(?:ab|act|adequa|appr|cap|compl|consist|corr|depend|effect|frequ|oper|soluble|suffic|toler|valid)\w+"
    r"|ir(?:reg|rel|rev)\w+)\b"
)

# "left" and "right" are sides before one of these, or after one of WHERE_EN at the end of a phrase.
BODY_EN = (
    r"[- ](?:sided?|hand(?:ed)?|arm|leg|foot|feet|knee|hip|eyes?|ear|shoulder|lungs?|kidney|breasts?|chest"
    r"|lobe|ovary|ventric\w+|atri\w+|upper|lower|middle|ankle|elbow|wrist|thumb|fingers?|toes?|index|ring|cheek|temple|jaw"
    r"|groin|thigh|calf|heel|rib\w*|flank|abdom\w+|lateral|anterior|posterior|main|coronary|carotid|renal|femoral"
    r"|iliac|nostril|eyebrow|eyelid|ureter\w*|hemi\w*|limb\w*|forearm|clavicle|collarbone|tibia|femur|humerus"
    r"|radius|ulna|half|lane|door|corner|button|inguinal|adrenal|hilum|costal|neck|parietal|temporal|frontal"
    r"|occipital)\b"
)
WHERE_EN = r"(?:turn|bear|keep|to the|on the|on your|from the|your|his|her|my|upper|lower|lie on the)"
SIDES = {"left": "左", "right": "右"}
ABBREVIATED = {"left": r"\b(?:L|LV\w*|L[UL][LQ]|OS)\b", "right": r"\b(?:R|RV\w*|R[UL][LQ]|RML|OD)\b"}
BOTH_ZH, BOTH_EN = "两侧|双侧|两边|左右", r"\b(?:both|either|bilateral\w*|opposite|other)\b"


@dataclass(frozen=True)
class Facts:
    """(kind, value) pairs; stated is a part of possible."""

    stated: frozenset[tuple[str, str]]
    possible: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Error:
    """One kind of fact that a candidate got wrong. `fact` lists the values."""

    kind: str
    change: str  # "lost" | "added" | "changed": one lost and another added
    fact: str


def facts(text: str, language: str) -> Facts:
    """What a text in one of LANGUAGES says about KINDS."""
    text = normalise(text)
    readings = {
        "number": numbers(text, language),
        "unit": units(text, language),
        "negation": negation(text, language),
        "laterality": laterality(text, language),
    }
    stated = {(kind, value) for kind, (surely, _) in readings.items() for value in surely}
    possible = {(kind, value) for kind, (_, maybe) in readings.items() for value in maybe}
    return Facts(frozenset(stated), frozenset(stated | possible))


def units(text: str, language: str) -> tuple[set[str], set[str]]:
    stated, possible = UNIT_PATTERNS[language]
    text = text.lower()
    return {u for u, p in stated.items() if p.search(text)}, {
        u for u, p in possible.items() if p.search(text)
    }


def unit_patterns(language: str) -> tuple[dict[str, re.Pattern[str]], dict[str, re.Pattern[str]]]:
    stated, possible = {}, {}
    for name, unit in UNITS.items():
        symbol = rf"(?:(?<=\d) ?-?|[/(·] ?)(?:{unit.symbols})(?![a-z0-9])"
        if language == "zh":
            stated[name] = re.compile(rf"{symbol}|(?:\d|{ZH_CHAR}|[半几每多余来]) ?(?:{unit.zh})")
            possible[name] = re.compile(f"{symbol}|{unit.zh}|{unit.zh_loose}")
        else:
            stated[name] = re.compile(rf"{symbol}|\b(?:{unit.en})\b")
            possible[name] = re.compile(rf"{symbol}|\b(?:{unit.en})\b|(?<!\w)(?:{unit.en_loose})(?!\w)")
    return stated, possible


UNIT_PATTERNS = {language: unit_patterns(language) for language in LANGUAGES}


def negation(text: str, language: str) -> tuple[set[str], set[str]]:
    sure, never, maybe = (
        (NEGATION_ZH, NOT_NEGATION_ZH, POSSIBLE_NEGATION_ZH)
        if language == "zh"
        else (NEGATION_EN, NOT_NEGATION_EN, POSSIBLE_NEGATION_EN)
    )
    text = text.lower()
    stated = bool(re.search(sure, re.sub(never, " ", text)))
    possible = stated or bool(re.search(maybe, text)) or bool(re.search(sure, text))
    return {"not"} if stated else set(), {"not"} if possible else set()


def laterality(text: str, language: str) -> tuple[set[str], set[str]]:
    stated, possible = set(), set()
    for side, char in SIDES.items():
        if language == "zh":
            surely, maybe = f"(?<!左){char}(?![右氧旋炔甲乙卡西])", f"{char}|{BOTH_ZH}"
        else:
            surely = (
                rf"(?i:\b{side}{BODY_EN}|\b{WHERE_EN} {side}\b(?=[,.;:!?]|$| and\b| or\b| at\b| after\b))"
            )
            maybe = rf"(?i:\b{side}|{BOTH_EN})|{ABBREVIATED[side]}"
        if re.search(surely, text):
            stated.add(side)
        if re.search(maybe, text):
            possible.add(side)
    return stated, possible


def new_errors(source: Facts, reference: Facts, candidate: Facts) -> list[Error]:
    """What `candidate` got wrong and `reference` had right: at most one entry a kind.

    Swap the two translations to get what the candidate repaired.
    """
    lost = (source.stated & reference.stated) - candidate.possible
    added = candidate.stated - source.possible - reference.possible
    already = {kind for kind, _ in reference.stated - source.possible}
    errors = []
    for kind in KINDS:
        gone = ", ".join(sorted(value for k, value in lost if k == kind))
        come = ", ".join(sorted(value for k, value in added if k == kind and kind not in already))
        if gone and come:
            errors.append(Error(kind, "changed", f"{gone} to {come}"))
        elif gone or come:
            errors.append(Error(kind, "lost" if gone else "added", gone or come))
    return errors
