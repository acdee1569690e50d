"""Qwen2.5-Coder-0.5B- and 1.5B-Instruct from their GGUF files to clinic sentences, at 4 and 8 bits.

The smallest real models at hand that translate; a few sentences, so that what is asserted is what any sound
copy of them says. How well they do it is measured by benchmarks/causal_quality.py. Peak memory 8 GB.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_models import ACCEPTANCE, compared, edgemt, fetched

pytestmark = pytest.mark.slow
CHINESE = ("--from", "zh", "--to", "en")
TERMS = (*CHINESE, "--glossary", "手术=surgery", "--glossary", "无菌=sterile")
SENTENCES = (
    "患者对青霉素过敏。",
    "请每天早上空腹服用一片。",
    "血压为120/80毫米汞柱，体温为36.8摄氏度。",
    "如果疼痛在两天内没有减轻，请再来复诊。",
)


def exported(gguf: Path, bundle: Path, *options: str) -> Path:
    done = edgemt("export", gguf, *options, "--no-gate", "-o", bundle)
    assert compared(done) >= 30
    return bundle


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 0.5B at 4 bits, in the blocks that drafts need on x86."""
    bundle = tmp_path_factory.mktemp("qwen") / "half"
    return exported(fetched("qwen-0.5b"), bundle, "--int4", "--int4-block", "32")


@pytest.fixture(scope="module", params=[("--int4",), ("--int8", "--scheme", "blocks")], ids=["int4", "int8"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 1.5B as `edgemt export` makes it where nothing else is asked for."""
    return exported(fetched("qwen-1.5b"), tmp_path_factory.mktemp("qwen") / "whole", *request.param)


def test_small_drafts_by_look_up_change_nothing(half: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    text = (*CHINESE, "-i", tmp_path / "in.txt")
    plain, drafted = (edgemt("translate", "-b", half, *draft, *text) for draft in ((), ("--draft", "lookup")))
    assert plain.stdout == drafted.stdout and len(plain.stdout.splitlines()) == len(SENTENCES)


def test_small_terms(half: Path) -> None:
    assert_terms(half)


def test_large_sentences(whole: Path) -> None:
    answers = [edgemt("translate", "-b", whole, *CHINESE, text).stdout.lower() for text in SENTENCES]
    for answer, words in zip(
        answers,
        (("penicillin", "allerg"), ("take", "morning"), ("120/80", "36.8"), ("pain", "two days")),
        strict=True,
    ):
        assert all(word in answer for word in words), answers


def test_large_terms(whole: Path) -> None:
    assert_terms(whole)


def test_large_tags_and_context(whole: Path) -> None:
    text = '<p>患者对<b>青霉素</b>过敏，体温<i id="t">36.8</i>摄氏度。</p>'
    answer = edgemt("translate", "-b", whole, *CHINESE, "--markup", text).stdout.strip()
    assert answer.startswith("<p>") and answer.endswith("</p>")
    assert '<i id="t">36.8' in answer and "<b>penicillin</b>" in answer.lower()
    aware = edgemt("translate", "-b", whole, *CHINESE, "--context", "患者是一位女士。", "体温正常。").stdout
    assert "temperature" in aware.lower() and "patient is a" not in aware.lower()  # it is not translated


def assert_terms(bundle: Path) -> None:
    answer = json.loads(edgemt("translate", "-b", bundle, "--json", *TERMS, ACCEPTANCE).stdout)
    assert "missing_terms" not in answer
    assert {"surgery", "sterile"} <= set(answer["target"].lower().rstrip(".").split())
