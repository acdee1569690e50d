"""Numbers in Chinese and English, however spelled: 三, 3, three; 百分之三十, 30 %; 一片半, one and a half.

A text is read twice. *Stated* is what it surely says; *possible* is whatever a reader could take it to
say ("a tablet" may be one tablet, 20:00 may be 8). A value is lost only if it was stated and is no longer
possible. Weekdays and months count as numbers: 周三 and Wednesday are "Wed", 5月 and May are 5.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

Value = str | int | float | Decimal
Rule = tuple[str, Callable[[re.Match[str]], Iterable[Value]]]

NAMES = re.compile(r"COVID[- ]?19|2019-nCoV|(?:SARS-)?CoV-?2", re.I)  # translations put words for these
HAN = "[\u4e00-\u9fff]"
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?)"
CLOCK = r"(?<![\d:])(\d{1,2}):(\d{2})(?![\d:])"

ZH_DIGIT = {"零": 0, "〇": 0, "一": 1, "二": 2, "两": 2, "俩": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7}
ZH_DIGIT |= {"八": 8, "九": 9}
ZH_UNIT = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
ZH_CHAR = f"[{''.join(ZH_DIGIT)}{''.join(ZH_UNIT)}]"
ZH_NUMBER = f"({DIGITS}|{ZH_CHAR}+)"
ZH_WEEKDAY = {
    "一": "Mon",
    "二": "Tue",
    "三": "Wed",
    "四": "Thu",
    "五": "Fri",
    "六": "Sat",
    "日": "Sun",
    "天": "Sun",
}
# Words whose numeral counts nothing. One that is missing does little harm: a translation must say it as well.
ZH_WORDS = (
    "一[些样直般起定下切向律致同旦边旁路时会味]|一点(?![零一二三四五六七八九])|[统唯同单专万]一|第[一二]|千[万克米帕卡瓦]|百分[之点]"
    "|百姓|百叶|四肢|四[周处]|五官|三角|二甲双胍|三[酰叉尖明]|二尖|四环素|十字|十二指肠|两口子|半[规球月毛]|万古|乱七八糟"
    "|成千上万|零[食件散星售部下头]|[一二三四五六七八九]成|[七八九]折"
    f"|(?<!{ZH_CHAR[:-1]}\\d])十分(?!之|钟)"
)
# 一 is a number only before what it counts; elsewhere it is an article, or part of a word.
ZH_COUNTED = "[片粒次天周年岁月日号秒毫克升公斤支瓶包袋滴杯勺期级]|分[钟之]|小时|个[月小星礼]"

EN_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
EN_WORD = {word: value for value, word in enumerate(EN_SMALL.split())}
EN_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
EN_WORD |= {word: 10 * i for i, word in enumerate(EN_TENS.split(), 2)}
EN_SCALE = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
EN_ORDINALS = "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
EN_OTHER: dict[str, Value] = {
    word + plural: value for value, word in enumerate(EN_ORDINALS.split(), 3) for plural in ("", "s")
}
EN_OTHER |= {f"{word[:-1]}ies": value for word, value in EN_WORD.items() if value >= 20}  # in her forties
EN_OTHER |= {"half": 0.5, "twice": 2, "thrice": 3, "dozen": 12}
EN_SPELLED = r"\b(?:{0})\b(?:(?:-| and | )(?:{0})\b)*".format("|".join([*EN_WORD, *EN_SCALE]))
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"
EN_MONTH: Sequence[str] = MONTHS.split()
EN_COUNTED = (
    "(?:tablet|pill|capsule|drop|dose|hour|day|week|month|year|minute|time|second|mg|ml|liter|litre|gram|kilo|cup"
    "|bottle|spoon|bag|box|pack|shot|unit|percent|third|in )"
)


def zh_read(number: str) -> list[Decimal]:
    """The values of one run of digits or numerals: 两百五 -> 250, 三四 -> 3 and 4, 二零二四 -> 2024."""
    if number[0].isdigit():
        return [Decimal(number.replace(",", ""))]
    pair = re.search("(?<![零〇])[一二两三四五六七八九]{2}(?![零〇一二两三四五六七八九])", number)
    with_unit = any(char in ZH_UNIT for char in number)
    if pair and (with_unit or len(number) == 2):  # 三四十, 十五六: the one or the other
        start, end = pair.span()
        return [value for char in pair[0] for value in zh_read(number[:start] + char + number[end:])]
    if not with_unit:
        return [Decimal("".join(str(ZH_DIGIT[char]) for char in number))]
    total, section, digit, last = 0, 0, 0, 1
    for char in number:
        if char in ZH_DIGIT:
            digit = ZH_DIGIT[char]
            last = 10 if char in "零〇" else last
        elif ZH_UNIT[char] < 10**4:
            last = ZH_UNIT[char]
            section, digit = section + (digit or 1) * last, 0
        else:
            last = ZH_UNIT[char]
            total, section, digit = (total + section + digit or 1) * last, 0, 0
    return [Decimal(total + section + digit * max(1, last // 10))]


def en_read(phrase: str) -> list[Decimal]:
    """The values of a run of number words: "a hundred and five" -> 105, "two three" -> 2 and 3."""
    values, total, current, room = [], 0, 0, 10**12  # a word must be below `room` to continue the number
    for word in re.findall("[a-z]+", phrase.lower()):
        if word in EN_SCALE:
            if EN_SCALE[word] == 100:
                current, room = (current or 1) * 100, 100
            else:
                total, current, room = total + (current or 1) * EN_SCALE[word], 0, EN_SCALE[word]
        elif word in EN_WORD:
            if EN_WORD[word] >= room:
                values.append(total + current)
                total, current = 0, 0
            current += EN_WORD[word]
            room = 10 if EN_WORD[word] >= 20 else 0
    return [Decimal(value) for value in [*values, total + current]]


def half_more(values: Iterable[Decimal]) -> list[Decimal]:
    return [value + Decimal("0.5") for value in values]


def with_fraction(whole: Iterable[Value], digits: str) -> list[Decimal]:
    tail = "".join(str(ZH_DIGIT.get(char, char)) for char in digits)
    return [Decimal(f"{value}.{tail}") for value in whole]


def clock(match: re.Match[str]) -> list[int]:
    return [int(match[1]), int(match[2])] if int(match[2]) else [int(match[1])]


# Tried in order, each on what the earlier ones left; a match is taken out of the text.
ZH_STATED: list[Rule] = [
    (CLOCK, clock),
    (
        f"{ZH_NUMBER}世纪{ZH_NUMBER}年代",
        lambda m: [100 * (zh_read(m[1])[0] - 1) + zh_read(m[2])[0], *zh_read(m[1]), *zh_read(m[2])],
    ),
    ("(?:周|星期|礼拜)([一二三四五六日天])(?![次天年个岁片粒])", lambda m: [ZH_WEEKDAY[m[1]]]),
    (ZH_WORDS, lambda m: []),
    (f"{ZH_NUMBER}点半", lambda m: [*zh_read(m[1]), 30]),
    (
        f"({ZH_CHAR}+)[点度]([零〇一二三四五六七八九]+)(?![十分刻])",
        lambda m: with_fraction(zh_read(m[1]), m[2]),
    ),
    (r"(\d+)度([\d一二三四五六七八九])(?!\d)", lambda m: with_fraction([m[1]], m[2])),
    (
        f"{ZH_NUMBER}(?:个半|(?:[片粒天年岁周包袋杯支瓶斤米碗里]|小时|公斤|星期|公里)半)",
        lambda m: half_more(zh_read(m[1])),
    ),
    (f"({DIGITS})([百千万亿]+)", lambda m: [zh_read(m[1])[0] * zh_read(m[2])[0]]),
    (DIGITS, lambda m: zh_read(m[0])),
    ("一半", lambda m: [0.5]),
    ("[十百千万亿]*[几数][十百千万亿]+|十几", lambda m: []),
    (f"(?<!{ZH_CHAR})一(?!{ZH_COUNTED}|{ZH_CHAR})", lambda m: []),
    (f"{ZH_CHAR}+", lambda m: zh_read(m[0])),
    ("(?<![一多大上下前后小点])半(?![夜天边身路晌截成数])", lambda m: [0.5]),
]
EN_STATED: list[Rule] = [
    (CLOCK, clock),
    (r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun)(?:day|sday|nesday|rsday|urday)s?\b", lambda m: [m[1]]),
    (
        r"\b(?:Jan(?:uary)?|Feb(?:ruary)?|Apr(?:il)?|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
        r"|Nov(?:ember)?|Dec(?:ember)?)\b|\b(?:May|Mar|March)(?=\.? ?\d)"
        r"|(?:(?<=in )|(?<=of )|(?<=since )|(?<=until )|(?<=by )|(?<=\d ))(?:May|March)\b",
        lambda m: [1 + EN_MONTH.index(m[0][:3])],
    ),
    (rf"({DIGITS})(?: [a-z]+)? (?:and a half|1/2)\b", lambda m: half_more(zh_read(m[1]))),
    (r"(?i:\ban?(?: [a-z]+)? and a half\b)", lambda m: [1.5]),
    (rf"(?i:({EN_SPELLED})(?: [a-z]+)? and a half\b)", lambda m: half_more(en_read(m[1]))),
    (rf"({DIGITS})[- ](hundred|thousand|million|billion)\b", lambda m: [zh_read(m[1])[0] * EN_SCALE[m[2]]]),
    (DIGITS, lambda m: zh_read(m[0])),
    (r"(?i:\bhalf past\b)", lambda m: [30]),
    (
        rf"(?i:({EN_SPELLED}) point ((?:\b(?:{'|'.join(list(EN_WORD)[:10])})\b ?)+))",
        lambda m: with_fraction(en_read(m[1]), "".join(str(EN_WORD[word]) for word in m[2].lower().split())),
    ),
    (rf"(?i:\bone\b(?!-| and |{EN_SPELLED})(?![- ]{EN_COUNTED}))", lambda m: []),
    (rf"(?i:{EN_SPELLED})", lambda m: en_read(m[0])),
    (r"(?i:\bonce(?= (?:an?|each|every|per|daily|weekly|nightly|monthly)\b))", lambda m: [1]),
    (r"(?i:\b(?:few|several|some|many|two|three) dozen\b)", lambda m: []),
    (rf"(?i:\b({'|'.join(EN_OTHER)})\b)", lambda m: [EN_OTHER[m[1].lower()]]),
]
# Read from the whole text, beside what is stated.
ZH_POSSIBLE: list[Rule] = [
    (ZH_NUMBER, lambda m: zh_read(m[1])),
    ("[一每单首初某日]", lambda m: [1]),
    ("[双对另都再次倍]", lambda m: [2]),
    ("半", lambda m: [0.5, 30, 6, 12]),
    ("30分钟|6个月|六个月|15天|十五天", lambda m: [0.5]),
    ("刻", lambda m: [15, 45]),
    ("中午|正午|午夜|零点", lambda m: [12, 0]),
    ("打", lambda m: [12]),
    (f"{ZH_NUMBER}成", lambda m: [10 * value for value in zh_read(m[1])]),
    (f"{ZH_NUMBER}个?(?:周|星期|礼拜)", lambda m: [7 * value for value in zh_read(m[1])]),
    (f"{ZH_NUMBER}天", lambda m: [value / 7 for value in zh_read(m[1]) if value % 7 == 0]),
    (f"{ZH_NUMBER}[点时:]", lambda m: [(value + shift) for value in zh_read(m[1]) for shift in (12, -12)]),
]
EN_POSSIBLE: list[Rule] = [
    (
        r"(?i:\b(?:an?|one|each|every|per|single|first|once|only|another|again|last|final|next|daily|weekly|nightly|hourly|this|the)\b)",
        lambda m: [1],
    ),
    (
        r"(?i:\b(?:two|couple|pair|both|double|second|next|twin|other|half|again|few|some|several|bi\w+)s?\b)",
        lambda m: [2],
    ),
    (r"(?i:half|halv|semi)", lambda m: [0.5, 30, 6, 12]),
    (r"(?i:(?:six|6) months|(?:two|2) weeks|(?:14|15) days|(?:30|thirty) minutes)", lambda m: [0.5]),
    (r"(?i:\bquarter)", lambda m: [4, 15, 45, 3]),
    (r"(?i:\b(?:triple|thrice|tri\w+)\b)", lambda m: [3]),
    (r"(?i:\b(?:noon|midnight|midday)\b)", lambda m: [12, 0]),
    (r"(?i:\bfortnight)", lambda m: [2, 14]),
    (r"(?i:\b(Sun|Mon|Tue|Wed|Thu|Fri|Sat))", lambda m: [m[1].title()]),
    (
        r"(?i:\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))",
        lambda m: [1 + EN_MONTH.index(m[1].title())],
    ),
    (r"\b(\d+)[- ]week", lambda m: [7 * int(m[1])]),
    (r"\b(\d+)[- ]day", lambda m: [int(m[1]) // 7] if int(m[1]) % 7 == 0 else []),
    (r"\b(\d{1,2})(?=:\d| ?[ap]\.?m| o'clock)", lambda m: [int(m[1]) + 12, int(m[1]) - 12]),
]
RULES = {"zh": (ZH_STATED, ZH_POSSIBLE), "en": (EN_STATED, EN_POSSIBLE)}


def normalise(text: str) -> str:
    """One spelling of digits, signs and letters (NFKC), without names that hold a number (COVID-19)."""
    text = NAMES.sub(" ", unicodedata.normalize("NFKC", text).replace("\u2044", "/").replace("’", "'"))
    return re.sub(f"(?<={HAN}) (?=\\d)|(?<=\\d) (?={HAN})", "", text)


def numbers(text: str, language: str) -> tuple[frozenset[str], frozenset[str]]:
    """(stated, possible) values of a normalised text in "zh" or "en": "2.5", "1000", "Wed"."""
    stated, possible = RULES[language]
    found: set[str] = set()
    rest = text
    for pattern, values in stated:
        for match in re.finditer(pattern, rest):
            found.update(map(plain, values(match)))
        rest = re.sub(pattern, "\uffff", rest)
    more = (
        plain(value)
        for pattern, values in possible
        for match in re.finditer(pattern, text)
        for value in values(match)
    )
    return frozenset(found), frozenset(found.union(more))


def plain(value: Value) -> str:
    """A value in one spelling: 2.50 -> "2.5", 1E+3 -> "1000"; names of days stay."""
    if isinstance(value, str) and not value[0].isdigit():
        return value
    return format(Decimal(str(value)).normalize(), "f")
