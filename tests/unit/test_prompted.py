"""What a prompted model is asked and what becomes of its answers, with answers of every kind."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_answers import ANSWERS
from test_markup import SAID, TREES, shape

from edgemt.batches import together
from edgemt.errors import UsageError
from edgemt.family import Request
from edgemt.glossary import Glossary
from edgemt.prompted import Context, Prompted
from edgemt.search import Hypothesis, SearchOptions
from edgemt.segment import Segment
from edgemt.translator import Translator, load

TEXTS = st.lists(
    st.sampled_from(["他发烧了。", "疼，", "很", "\n", " ", "120/80", "CT", "（好）"]), max_size=8
).map("".join)


NO_PROGRAM: Any = None


class Characters:
    """A tokenizer whose tokens are characters."""

    unknown, control, inner, words, digits = (
        -1,
        frozenset[int](),
        frozenset[int](),
        frozenset[int](),
        frozenset(map(ord, "0123456789")),
    )
    pieces: ClassVar[Mapping[int, str]] = {ord(char): char for char in ".!?。！？"}
    closing = frozenset(pieces)

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return [(i, i + 1) for i in range(len(text))]

    def encode_target(self, text: str) -> list[int]:
        return self.encode(text)

    def spellings(self, text: str, glued: bool, language: str) -> list[list[int]]:
        return [self.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


class Scripted:
    """A family whose model says what `say` says."""

    prompts, limit, tokenizer = True, 60, Characters()

    def __init__(self, say: Callable[[Request], str], most: int = 10**6) -> None:
        self.say, self.most = say, most
        self.asked: list[Request] = []
        self.closed = 0

    def tokens(self, text: str) -> int:
        return len(text)

    def generate(
        self, program: Any, requests: Sequence[Request], options: SearchOptions, most: int | None = None
    ) -> list[Hypothesis]:
        self.asked += requests
        said = [tuple(self.tokenizer.encode(self.say(request))[: self.most]) for request in requests]
        return [Hypothesis(tokens, None, None, len(tokens) < self.most) for tokens in said]

    def stream(
        self, program: Any, request: Request, options: SearchOptions, most: int | None = None
    ) -> Generator[int]:
        self.asked.append(request)
        try:
            yield from self.tokenizer.encode(self.say(request))[: self.most]
        finally:
            self.closed += 1

    def longest(self, request: Request, options: SearchOptions) -> int:
        return self.most


def prompted(
    family: Any, glossary: dict[str, str] | None = None, context: Context | None = None, to: str = "en"
):
    languages = ("en", "zh") if to == "zh" else ("zh", to)
    terms = Glossary(glossary) if glossary else None
    return Prompted(family, NO_PROGRAM, SearchOptions(), *languages, terms, context or Context())


def whole(events: Any) -> str:
    return "".join(event.target for event in events if isinstance(event, Segment))


@given(TEXTS, st.lists(ANSWERS, min_size=1, max_size=3), st.sampled_from(["en", "zh"]), st.integers(1, 60))
@example("他发烧了。", ["Translation(译文：)"], "zh", 60)
@settings(max_examples=300)
def test_chunks_are_the_translation(text: str, answers: list[str], to: str, most: int) -> None:
    """Whatever the model says, and where it is cut off."""
    if to == "zh":
        text = (
            text.replace("他发烧了", "He has a fever")
            .replace("疼", "pain")
            .replace("很", "very")
            .replace("好", "ok")
        )
    turns: dict[str, str] = {}

    def say(request: Request) -> str:
        return turns.setdefault(request.text, answers[len(turns) % len(answers)])

    expected = list(prompted(Scripted(say, most), to=to).text(text))
    events = list(prompted(Scripted(say, most), to=to).text(text, stream=True))
    shown = chunks = ""
    for event in events:
        if isinstance(event, str):
            assert event
            shown += event
        else:
            assert event.target.startswith(shown)
            chunks, shown = chunks + event.target, ""
    assert chunks == whole(expected)


@given(st.lists(TEXTS, max_size=5), ANSWERS, st.integers(1, 60), st.integers(1, 3))
def test_many_are_what_one_by_one_gives(texts: list[str], answer: str, most: int, batch: int) -> None:
    """Chatter goes, loops are cut, and what is doubtful is told."""
    sentences = [text for text in texts if "\n" not in text and "。" not in text.rstrip()[:-1]]

    def say(request: Request) -> str:
        return answer + request.text[-1:]

    found = together(prompted(Scripted(say, most)), sentences, batch)
    for sentence, segments in zip(sentences, found, strict=True):
        alone = cast(list[Segment], [*prompted(Scripted(say, most)).text(sentence)])
        told = [
            [(one.target, one.finished, one.doubt, one.translated) for one in some if one.source]
            for some in (segments, alone)
        ]
        assert told[0] == told[1]


def test_a_batch_is_cleaned_and_tells_what_is_doubtful(toy_bundle: Path) -> None:
    def saying(say: Callable[[Request], str], most: int = 10**6) -> Translator:
        translator, family = load(toy_bundle), cast(Any, Scripted(say, most))
        translator.family = family
        return translator

    answers = {
        "他发烧了。": "Translation: He has a fever.\n\nNote: 发烧.",
        "他疼。": "",
        "他走了。": "他走了。",
    }
    translator = saying(lambda request: answers[request.text])
    assert translator.translate_many([*answers], "zh", "en") == ["He has a fever.", "", "他走了."]
    found = translator.segments_many([*answers], "zh", "en")
    assert [segment.doubt for (segment,) in found] == ["", "empty", "script"]
    ((segment,),) = saying(lambda request: "He " * 30, 40).segments_many(["他发烧了。"], "zh", "en")
    assert not segment.finished and segment.target == "He"


def test_numbers_that_cannot_be(toy_bundle: Path) -> None:
    translator = load(toy_bundle)
    with pytest.raises(UsageError, match="a batch of 0 cannot be"):
        translator.translate_many(["他疼。"], "zh", "en", batch=0)
    with pytest.raises(UsageError, match="a beam of -1 cannot be"):
        translator.translate("他疼。", beam=-1)
    with pytest.raises(UsageError, match="a context of -1 sentences cannot be"):
        Context(count=-1)


def test_words_come_one_by_one() -> None:
    family = Scripted(lambda request: "The patient is well, and so are you.")
    *chunks, segment = prompted(family).text("他很好。", stream=True)
    assert isinstance(segment, Segment) and segment.target == "The patient is well, and so are you."
    assert len(chunks) > 10 and "".join(map(str, chunks)) == "The patient is well, and so are you"


def test_closing_a_stream_closes_the_model_s() -> None:
    family = Scripted(lambda request: "The patient is well.")
    events = prompted(family).text("他很好。他不疼。", stream=True)
    assert isinstance(next(events), str) and not family.closed
    events.close()
    assert family.closed == 1 and len(family.asked) == 1


def test_context_is_what_was_given_and_the_sentences_before() -> None:
    family = Scripted(lambda request: "Yes.")
    list(
        prompted(family, context=Context(["  昨天\n住院。", " "], 2)).text(
            "他很好。\n他不疼。他走了。他来了。"
        )
    )
    assert [request.context for request in family.asked] == [
        ("昨天 住院。",),
        ("昨天 住院。", "他很好。"),
        ("昨天 住院。", "他很好。", "他不疼。"),
        ("昨天 住院。", "他不疼。", "他走了。"),
    ]
    list(prompted(family).text("他很好。他不疼。"))
    assert not family.asked[-1].context


def test_terms_are_told_then_written_into_the_text_then_forced() -> None:
    terms = {"手术": "surgery", "无菌": "sterile", "没有": "none"}
    obedient = Scripted(lambda request: "The surgery is sterile.")
    (segment,) = prompted(obedient, terms).text("手术要无菌。")
    (request,) = obedient.asked
    assert request.terms == (("手术", "surgery"), ("无菌", "sterile")) and request.constraint is None
    assert (
        isinstance(segment, Segment) and not segment.missing and segment.target == "The surgery is sterile."
    )
    stubborn = Scripted(lambda request: "The operation is clean.")
    (segment,) = prompted(stubborn, terms).text("手术要无菌。")
    assert [(request.text, request.constraint is None) for request in stubborn.asked] == [
        ("手术要无菌。", True),
        ("surgery要sterile。", True),
        ("手术要无菌。", False),
    ]
    assert isinstance(segment, Segment) and segment.missing == ("surgery", "sterile")


@given(TREES, st.lists(SAID.map(lambda said: f"<target>{said}</target>") | SAID, min_size=1, max_size=5))
@example("<b><hr><b>Take two</b></b>He has a fever. ", ["<target>Ja</target>"])
@settings(max_examples=300)
def test_documents_keep_their_tags_whatever_is_answered(text: str, answers: list[str]) -> None:
    turn = iter(answers * 1000)
    segments = list(prompted(Scripted(lambda _: next(turn)), to="zh").document(text))
    assert "".join(segment.source for segment in segments if isinstance(segment, Segment)) == text
    assert shape(whole(segments)) == shape(text)


def test_tags_that_are_lost_are_asked_for_once_more_without_them() -> None:
    said = iter(
        ["<target>A <s1>doctor</s1> now.</target>", "<target>A <s1>physician</s1> now.</target>", "Hurry"]
    )
    family = Scripted(lambda request: next(said))
    (segment,) = prompted(family).document("去看<b>医生</b>，<i>马上</i>。")
    assert [request.text for request in family.asked] == [
        "去看<s1>医生</s1>，<s2>马上</s2>。",
        "去看<s1>医生</s1>，马上。",
        "马上",  # and what is it alone?
    ]
    assert isinstance(segment, Segment)
    assert segment.target == "A <b>physician</b> now.<i></i>" and segment.missing_tags == ("<i>",)


def test_tags_that_stay_lost_go_around_their_words() -> None:
    text, told = "<b>手术</b>前测<i>38.5</i>，<u>马上</u>。", "Measure 38.5 at once before the surgery."
    family = Scripted(lambda request: "At once." if request.text == "马上" else told)
    (segment,) = prompted(family, {"手术": "surgery"}).document(text)
    assert isinstance(segment, Segment) and not segment.missing_tags
    assert segment.target == "Measure <i>38.5</i> <u>at once</u> before the <b>surgery</b>."
    assert [request.text for request in family.asked][2:] == ["马上"]  # the others need no model


def test_without_any_tag_left_the_prompt_is_the_plain_one() -> None:
    family = Scripted(lambda request: "Now." if "要" in request.text else "Soon")
    segments = list(prompted(family, context=Context(["好。"])).document("<p>要<i>马上</i>。</p>"))
    assert whole(segments) == "<p><i>Now.</i></p>"
    assert [(request.text, request.context, request.markup) for request in family.asked] == [
        ("要<s1>马上</s1>。", ("好。",), True),
        ("要马上。", ("好。",), False),
        ("马上", (), False),
    ]


@pytest.mark.parametrize(
    ("answer", "most", "target", "finished", "doubt"),
    [
        ("It hurts.", 99, "It hurts.", True, ""),
        ("It hurts " * 9, 60, "It hurts", False, ""),
        ("", 99, "", True, "empty"),
        ("他疼。", 99, "他疼.", True, "script"),
    ],
)
def test_what_a_segment_tells(answer: str, most: int, target: str, finished: bool, doubt: str) -> None:
    (segment,) = prompted(Scripted(lambda request: answer, most)).text("他很疼。")
    assert isinstance(segment, Segment)
    assert (segment.target, segment.finished, segment.doubt) == (target, finished, doubt)
