"""HY-MT's prompts: what a decoder-only translator is asked, chosen by what the request holds.

The texts are those of the HY-MT1.5 model card (github.com/Tencent-Hunyuan/HY-MT, README.md, "Prompts"); its
formatted prompt, printed there for Chinese, takes any target here. Of requests that hold several things the
card says nothing. Here the terms come first, then the context, then the instruction; tags need their own
instruction, which also says where the text begins and ends, so with tags the context is only referred to.

What a user types is data: it is put into a template once and never read as a template itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from edgemt.errors import UsageError

# Code: name in Chinese, name in English (the model card's table).
LANGUAGES: dict[str, tuple[str, str]] = {
    "zh": ("中文", "Chinese"),
    "en": ("英语", "English"),
    "fr": ("法语", "French"),
    "pt": ("葡萄牙语", "Portuguese"),
    "es": ("西班牙语", "Spanish"),
    "ja": ("日语", "Japanese"),
    "tr": ("土耳其语", "Turkish"),
    "ru": ("俄语", "Russian"),
    "ar": ("阿拉伯语", "Arabic"),
    "ko": ("韩语", "Korean"),
    "th": ("泰语", "Thai"),
    "it": ("意大利语", "Italian"),
    "de": ("德语", "German"),
    "vi": ("越南语", "Vietnamese"),
    "ms": ("马来语", "Malay"),
    "id": ("印尼语", "Indonesian"),
    "tl": ("菲律宾语", "Filipino"),
    "hi": ("印地语", "Hindi"),
    "zh-Hant": ("繁体中文", "Traditional Chinese"),
    "pl": ("波兰语", "Polish"),
    "cs": ("捷克语", "Czech"),
    "nl": ("荷兰语", "Dutch"),
    "km": ("高棉语", "Khmer"),
    "my": ("缅甸语", "Burmese"),
    "fa": ("波斯语", "Persian"),
    "gu": ("古吉拉特语", "Gujarati"),
    "ur": ("乌尔都语", "Urdu"),
    "te": ("泰卢固语", "Telugu"),
    "mr": ("马拉地语", "Marathi"),
    "he": ("希伯来语", "Hebrew"),
    "bn": ("孟加拉语", "Bengali"),
    "ta": ("泰米尔语", "Tamil"),
    "uk": ("乌克兰语", "Ukrainian"),
    "bo": ("藏语", "Tibetan"),
    "kk": ("哈萨克语", "Kazakh"),
    "mn": ("蒙古语", "Mongolian"),
    "ug": ("维吾尔语", "Uyghur"),
    "yue": ("粤语", "Cantonese"),
}
CHINESE = frozenset({"zh", "zh-Hant", "yue"})

# The instruction of each kind of prompt. {language} is its name in Chinese, {name} in English.
PLAIN = "将以下文本翻译为{language}，注意只需要输出翻译后的结果，不要额外解释：\n\n{text}"
PLAIN_WITHOUT_CHINESE = (
    "Translate the following segment into {name}, without additional explanation.\n\n{text}"
)
TERMS_BEFORE = "参考下面的翻译：\n{terms}\n\n"
TERMINOLOGY = TERMS_BEFORE + PLAIN.replace("\n\n", "\n")
CONTEXT_BEFORE = "{context}\n参考上面的信息，"
CONTEXT = CONTEXT_BEFORE + "把下面的文本翻译成{language}，注意不需要翻译上文，也不要额外解释：\n{text}"
FORMATTED = (
    "将以下<source></source>之间的文本翻译为{language}，注意只需要输出翻译后的结果，不要额外解释，"
    "原文中的<sn></sn>标签表示标签内文本包含格式信息，需要在译文中相应的位置尽量保留该标签。"
    "输出格式为：<target>str</target>\n\n<source>{text}</source>"
)
TERM = "{source} 翻译成 {target}"

TARGET = re.compile(r"<target>(.*?)(?:</target>|\Z)", re.DOTALL)


def prompt(
    text: str,
    source: str,
    target: str,
    terms: Iterable[tuple[str, str]] = (),
    context: Sequence[str] = (),
    markup: bool = False,
) -> str:
    """What the model is asked, to translate `text` from language `source` into `target`.

    `terms`: source and target term of those that occur in the text; `context`: sentences of the source that
    come before it; `markup`: the text has tags `<s1>…</s1>`, and the answer is to keep them (and comes
    wrapped, see `answer_of`). Raises UsageError for a language that HY-MT does not know.
    """
    for code in (source, target):
        if code not in LANGUAGES:
            raise UsageError(f"no language {code} in HY-MT's prompts; choose of {', '.join(LANGUAGES)}")
    pairs = [TERM.format(source=a, target=b) for a, b in terms]
    if markup:
        before = (TERMS_BEFORE if pairs else "") + (CONTEXT_BEFORE if context else "")
        template = before + FORMATTED
    elif context:
        template = (TERMS_BEFORE if pairs else "") + CONTEXT
    elif pairs:
        template = TERMINOLOGY
    else:
        template = PLAIN if CHINESE & {source, target} else PLAIN_WITHOUT_CHINESE
    language, name = LANGUAGES[target]
    values = {"language": language, "name": name, "text": text}
    return template.format(**values, terms="\n".join(pairs), context="\n".join(context))


def answer_of(text: str, markup: bool) -> str:
    """What the model is to answer when the translation is `text`."""
    return f"<target>{text}</target>" if markup else text


def translation_in(answer: str, markup: bool) -> str:
    """The translation in an answer: with markup what stands in `<target>`, if it is there."""
    found = TARGET.search(answer) if markup else None
    return (found[1] if found else answer).strip()
