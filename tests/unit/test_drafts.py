"""Speculative decoding says what greedy search says, whatever the draft; prompts share their beginnings."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from causal_bundles import SENTENCES, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemt.bundle import open_bundle
from edgemt.causal import Causal
from edgemt.drafts import MOST_MARGIN, Drafts, Lookup, Model, attach_draft, margin
from edgemt.errors import UsageError
from edgemt.family import Request
from edgemt.generate import DraftStats, generate
from edgemt.pace import LONGEST_PAUSE, Pace
from edgemt.prefixes import Prefixes
from edgemt.runtimes import open_program
from edgemt.search import SearchOptions
from edgemt.translator import Translator, load

torch.set_num_threads(1)
LIMIT = 40
ZERO = np.zeros(1, np.int32)


class Eager(Pace):
    """Asks for so many tokens at every step."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def ask(self) -> int:
        return self.count


class Scripted:
    """Proposes the given answer, with wrong tokens at some places."""

    def __init__(self, answer: Sequence[int], prompt: int, wrong: set[int], most: int, margin: float) -> None:
        self.answer, self.prompt, self.wrong = answer, prompt, wrong
        self.pace, self.margin, self.closed = Eager(most), margin, False

    def propose(self, history: Sequence[int], most: int) -> list[int]:
        at = len(history) - self.prompt
        line = self.answer[at : at + most]
        return [(token + 1) % 600 if at + i in self.wrong else token for i, token in enumerate(line)]

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("drafts")
    made = {f"{kind}-{p}": (kind, p) for kind in ("hunyuan_v1_dense", "qwen2") for p in ("fp32", "int4")}
    return {name: write_bundle(directory / name, *how) for name, how in made.items()}


@pytest.fixture(scope="module", params=["hunyuan_v1_dense-fp32", "qwen2-fp32", "qwen2-int4"])
def translator(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Translator:
    found = load(bundles[request.param])
    if "int4" in request.param and margin(found.program, found.bundle.manifest.model):
        pytest.skip("4-bit steps of several tokens have other bits on this processor")
    return found


def prompts(translator: Translator, count: int, seed: int = 0) -> list[list[int]]:
    """Some of one piece said again and again, whose answers a look-up finds; some of any tokens."""
    draw, numbers = np.random.default_rng(seed), translator.bundle.manifest.model
    rows = []
    for i in range(count):
        line = draw.integers(0, 500, draw.integers(1, 24)).tolist()
        rows.append([*(line[:6] * 4 if i % 2 else line), numbers.start_id])
    return rows


def said(translator: Translator, row: list[int], draft: Any = None, stats: Any = None) -> list[int]:
    program = translator.program
    source = program.encode(np.array([row[:-1]], np.int32), ZERO + len(row) - 1)
    session = program.open(source, ZERO, LIMIT)
    numbers = translator.bundle.manifest.model
    return list(generate(session, row, numbers, LIMIT, draft=draft, stats=stats))


def test_floats_differ_by_little(bundles: dict[str, Path]) -> None:
    for name in ("hunyuan_v1_dense-fp32", "qwen2-fp32"):
        translator = load(bundles[name])
        assert 0 <= margin(translator.program, translator.bundle.manifest.model) < MOST_MARGIN / 10


@pytest.mark.parametrize("width", [1, 3, 8])
def test_a_look_up_changes_nothing(translator: Translator, width: int) -> None:
    apart = margin(translator.program, translator.bundle.manifest.model)
    stats = DraftStats()
    for row in prompts(translator, 60, width):
        draft = Lookup(3, 1, Eager(width), apart)
        assert said(translator, row, draft, stats) == said(translator, row)
    assert 0 < stats.accepted < stats.proposed and stats.steps < stats.tokens


def test_a_model_changes_nothing(translator: Translator, bundles: dict[str, Path]) -> None:
    apart = margin(translator.program, translator.bundle.manifest.model)
    stats = DraftStats()
    twin = translator.bundle.path.name.replace("fp32", "int4")  # rounds otherwise: right often, not always
    for name in (twin, "qwen2-int4"):
        bundle = open_bundle(bundles[name])
        program = open_program(bundle.directory, bundle.manifest)
        for row in prompts(translator, 20, 1):
            draft = Model(program, bundle.manifest.model, Prefixes(), (), Eager(4), apart, sure=0)
            assert said(translator, row, draft, stats) == said(translator, row)
            assert draft._session is None
    assert stats.accepted > 0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    wrong=st.sets(st.integers(0, LIMIT)),
    most=st.integers(0, 9),
    careful=st.booleans(),
)
def test_any_draft_changes_nothing(
    translator: Translator, seed: int, wrong: set[int], most: int, careful: bool
) -> None:
    """`careful`: every token is as if rounding could decide it, and said again by narrow steps."""
    (row,) = prompts(translator, 1, seed)
    expected = said(translator, row)
    apart = 1e9 if careful else margin(translator.program, translator.bundle.manifest.model)
    draft, stats = Scripted(expected, len(row), wrong, most, apart), DraftStats()
    assert said(translator, row, draft, stats) == expected
    assert draft.closed and stats.tokens == len(expected) and stats.accepted <= stats.proposed
    if not careful and most and not wrong and len(expected) == LIMIT:
        assert stats.steps <= 2 + LIMIT / (most + 1) + 5 * (apart > 0)


def test_what_a_look_up_finds() -> None:
    look = Lookup(3, 1)
    assert look.propose([1, 2, 3, 4, 9, 2, 3], 2) == [4, 9]
    assert look.propose([5, 3, 8, 1, 2, 3, 4, 2, 3], 3) == [4, 2, 3]  # two tokens before one, though older
    assert look.propose([7, 1, 7, 2, 7], 1) == [2]  # the newest of equals
    assert look.propose([1, 2, 3], 4) == [] and look.propose([1], 4) == [] and look.propose([], 4) == []
    assert look.propose([4, 4, 4], 5) == [4]
    assert Lookup(3, 2).propose([7, 1, 7, 2, 7], 1) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4), st.integers(0, 6))
def test_a_look_up_finds_the_longest_that_came_before(history: list[int], longest: int, most: int) -> None:
    def expected() -> list[int]:
        for size in range(longest, 0, -1):
            for start in range(len(history) - size - 1, -1, -1):
                if size <= len(history) and history[start : start + size] == history[-size:]:
                    return history[start + size : start + size + most]
        return []

    assert Lookup(longest, 1).propose(history, most) == expected()


def test_the_pace_goes_where_it_pays() -> None:
    pace = Pace()
    assert pace.ask() == 0  # what a plain step takes is not known yet
    pace.took(0, 0, 1.0)
    for _ in range(20):
        pace.took(4, 4, 1.0 + 4 * 0.1)
    assert pace.ask() >= 4
    for _ in range(30):
        pace.took(4, 0, 1.0 + 4 * 0.1)
    asked = [pace.ask() for _ in range(3000)]
    assert asked.count(0) > 0.98 * len(asked) and any(asked[-LONGEST_PAUSE - 2 :])
    for _ in range(30):
        pace.took(2, 2, 1.0 + 2 * 0.1)  # the text repeats itself again
    pace.rest = 0
    assert pace.ask() >= 4
    dear = Pace()
    dear.took(0, 0, 1.0)
    for _ in range(20):
        dear.took(4, 3, 1.0 + 4 * 1.2)  # a draft as slow as the model never pays
    assert dear.best(1.0, 1.2) == 0


def test_translations_are_greedy_searchs_and_counted(bundles: dict[str, Path]) -> None:
    plain, drafted, drafted_by_model = (load(bundles["qwen2-fp32"]) for _ in range(3))
    attach_draft(drafted.family, drafted.bundle, "lookup")
    attach_draft(drafted_by_model.family, drafted.bundle, bundles["qwen2-int4"])
    for translator in (drafted, drafted_by_model):
        for sentence in SENTENCES:
            source = "zh" if "。" in sentence else "en"
            expected = plain.translate(sentence, source_lang=source)
            assert translator.translate(sentence, source_lang=source) == expected
            assert "".join(translator.stream(sentence, source_lang=source)) == expected
        family = translator.family
        assert isinstance(family, Causal) and family.draft_stats.tokens > 0
        assert family.draft_stats.proposed >= family.draft_stats.accepted >= 0


def test_a_draft_that_does_not_fit_is_one_sentence(
    bundles: dict[str, Path], toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = load(bundles["qwen2-fp32"])
    family, bundle = translator.family, translator.bundle
    other = write_bundle(tmp_path / "other", size=690, sentences=["Something else, in other words."])
    for path in (other, toy_bundle):
        with pytest.raises(UsageError, match=r"has another vocabulary than qwen2-fp32; give a smaller model"):
            attach_draft(family, bundle, path)
    seq2seq = load(toy_bundle)
    with pytest.raises(UsageError, match="is not a decoder-only model and takes no draft"):
        attach_draft(seq2seq.family, seq2seq.bundle, "lookup")
    for name, apart in (("qwen2-fp32", 1.0), ("qwen2-int4", 1e-4)):
        monkeypatch.setattr("edgemt.drafts.margin", lambda *_, apart=apart: apart)
        translator = load(bundles[name])
        attach_draft(translator.family, translator.bundle, "lookup")
        with pytest.raises(UsageError, match="a draft would change what the model says"):
            translator.translate("手术", source_lang="zh")


# The beginning of a prompt.


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny tokenizer's templates are few tokens."""
    monkeypatch.setattr("edgemt.prefixes.SHORTEST", 1)


def asked(translator: Translator) -> list[Request]:
    return [
        Request(s, *(("zh", "en") if "。" in s else ("en", "zh")), markup=i == 3, context=(s,) * (i == 4))
        for i, s in enumerate(SENTENCES)
    ]


@pytest.mark.parametrize("options", [SearchOptions(), SearchOptions(beam=3)], ids=["greedy", "beam"])
def test_with_and_without_a_shared_beginning(
    translator: Translator, options: SearchOptions, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, program = translator.family, translator.program
    assert isinstance(family, Causal)
    for requests in ([request] for request in asked(translator)):
        first = family.generate(program, requests, options)
        assert family.generate(program, requests, options) == first
        whole = Causal(translator.bundle.directory, translator.bundle.manifest)
        monkeypatch.setattr(whole, "_head_of", lambda *_: ())
        for one, other in zip(whole.generate(program, requests, options), first, strict=True):
            assert one.tokens == other.tokens
    batch = [request for request in asked(translator) if request.source_lang == "zh"]
    found = family.generate(program, batch, options)
    assert [line.tokens for line in found] == [
        family.generate(program, [request], options)[0].tokens for request in batch
    ]
    assert len(family._prefixes[program].held) == 4


def test_the_tokens_read_are_always_the_prompts(translator: Translator, short: None) -> None:
    """A text whose beginning joins the template's end is read as its own tokens."""
    family, program = translator.family, translator.program
    assert isinstance(family, Causal)
    for text in ("\n\n手术", "\n手术", " a", "：b", "\u3000c", "1"):
        request = Request(text, "zh", "en")
        row = family.source(request)
        begun = family._begun(program, request, [row])
        assert begun is not None
        session = program.open(None, ZERO, len(row) + 1, begun)
        assert session.lengths[0] < len(row)
        (found,) = family.generate(program, [request], SearchOptions())
        assert list(found.tokens) == said_of(translator, [*row, family.model.start_id], request)


def said_of(translator: Translator, row: list[int], request: Request) -> list[int]:
    program, numbers = translator.program, translator.bundle.manifest.model
    source = program.encode(np.array([row[:-1]], np.int32), ZERO + len(row) - 1)
    limit = SearchOptions().limit(translator.family.tokens(request.text), 10**6)
    return list(generate(program.open(source, ZERO, limit), row, numbers, limit))


def test_few_beginnings_are_kept(translator: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    program, prefixes = translator.program, Prefixes()
    heads = [tuple(range(i, i + 12)) for i in range(5)]
    sizes = [p.nbytes for h in heads if (p := prefixes.of(program, h, [[*h, 5]]))]
    assert prefixes.size == sum(sizes) and len(set(sizes)) == 1
    monkeypatch.setattr("edgemt.prefixes.MOST_BYTES", 2 * sizes[0])
    assert prefixes.of(program, heads[1], [[*heads[1][:10], 99, 98]]) is not None  # the first ten of it
    prefixes.of(program, tuple(range(50, 62)), [list(range(50, 70))])
    assert list(prefixes.held) == [heads[1], tuple(range(50, 62))]
    assert prefixes.of(program, heads[0], [[1, 2, 3]]) is None
    assert prefixes.of(program, heads[0], [[*heads[0]], [*heads[0][:3], 400]]) is None


def test_threads_stream_from_one_translator(bundles: dict[str, Path]) -> None:
    translator = load(bundles["qwen2-fp32"])
    alone = load(bundles["qwen2-fp32"])
    expected = [alone.translate(s, source_lang="zh", target_lang="en") for s in SENTENCES]
    found: dict[int, str] = {}

    def work(i: int) -> None:
        found[i] = "".join(translator.stream(SENTENCES[i], source_lang="zh", target_lang="en"))

    for draft in (None, Drafts()):
        assert isinstance(translator.family, Causal)
        translator.family.draft = draft
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(SENTENCES))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found.pop(i) for i in range(len(SENTENCES))] == expected
