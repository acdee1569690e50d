"""Probes at the boundaries of the stages: what they see, and that they change nothing."""

import numpy as np
import pytest

from edgemt.bench.contenders import BundleContender, Mode
from edgemt.bench.stages import Stages, stages, summary
from edgemt.bench.workload import Sentence
from edgemt.translator import load

SENTENCES = [
    Sentence(1, "他昨天做了手术。", None, "zh", "en", {"手术": "surgery"}),
    Sentence(2, "Take two tablets a day with meals, and drink plenty of water.", None, "en", "zh"),
    Sentence(3, "我头疼。\n她对青霉素过敏。", None, "zh", "en"),
]


@pytest.mark.parametrize("mode", ["greedy", "beam4", "glossary"])
def test_every_stage_takes_its_time_and_the_first_token_comes_before_the_last(default_bundle, mode):
    contender = BundleContender("x", load(default_bundle), Mode.parse(mode))
    program, family, answers = (
        contender.translator.program,
        contender.translator.family,
        [contender.translate(sentence) for sentence in SENTENCES],
    )
    found = stages(contender, SENTENCES, rounds=3)
    assert found.text.shape == (3, 3)  # three texts, three passes
    for part in (found.text, found.encoder, found.decode, found.first):
        assert (part > 0).all()
    # Before the first token there are at least the encoder (of the first sentence) and a step.
    assert (found.first[:2] > found.encoder[:2].min()).all()
    assert contender.translator.program is program and contender.translator.family is family
    assert [contender.translate(sentence) for sentence in SENTENCES] == answers
    shares = summary(found, [0, 1, 2], [5, 5, 5])["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["decode"] > shares["text"]


def test_no_more_passes_than_rounds_were_asked_for(default_bundle):
    contender = BundleContender("x", load(default_bundle), Mode.parse("greedy"))
    assert stages(contender, SENTENCES[:1], rounds=2).text.shape == (1, 2)


def test_figures_by_hand():
    """Two texts, one pass: 2 + 3 + 5 and 4 + 6 + 10 ms, of which 4 and 8 until the first token."""
    columns = [np.array([[a], [b]], float) for a, b in ((2, 4), (3, 6), (5, 10), (4, 8))]
    found = summary(Stages(*columns), [0, 1], [4, 8])
    assert found["shares"] == pytest.approx({"text": 0.2, "encoder": 0.3, "decode": 0.5})
    assert found["first_token_p50_ms"] == 6
    assert found["ms_per_next_token"] == pytest.approx((6 + 12) / (4 + 8))
    assert summary(Stages(*columns), [1], [4, 8])["ms_per_next_token"] == pytest.approx(12 / 8)


def test_a_text_without_tokens_has_no_time_for_each():
    columns = [np.ones((1, 1)) for _ in range(4)]
    assert summary(Stages(*columns), [0], [0])["ms_per_next_token"] is None
