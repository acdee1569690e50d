"""A real decoder-only model from its GGUF file to an answer: SmolLM2-135M-Instruct, from the package index.

It is no translator; that what the graphs say is what transformers says does not depend on it. The file has
98 MB.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from real_models import ACCEPTANCE, compared, edgemt, fetched

GLOSSARY = ("--from", "zh", "--to", "en", "--glossary", "手术=surgery")


@pytest.fixture(scope="module")
def gguf() -> Path:
    return fetched("smollm2")


@pytest.fixture(scope="module")
def int4(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To 4 bits in the blocks that drafts need on x86, rounded to the nearest.

    Its FP32 graphs are compared with transformers on the way.
    """
    bundle = tmp_path_factory.mktemp("smollm2") / "int4"
    done = edgemt("export", gguf, "--int4", "--int4-block", "32", "--no-gate", "-o", bundle)
    assert compared(done) >= 90
    return bundle


def test_the_bundle_is_small_says_what_it_is_made_of_and_speaks(int4: Path) -> None:
    size = sum(path.stat().st_size for path in int4.rglob("*") if path.is_file())
    assert size < 100e6  # of 134.5 M weights
    said = edgemt("inspect", int4).stdout
    assert "int4" in said and "Q4_1" in said
    answer = json.loads(edgemt("translate", "-b", int4, "--json", *GLOSSARY, ACCEPTANCE).stdout)
    assert "surgery" in answer["target"].lower()  # a term is obeyed by a model that cannot translate, too
    assert not re.search(r"<\|im_(start|end)\|>", answer["target"])


def test_a_draft_by_look_up_changes_nothing(int4: Path) -> None:
    text = ("--from", "en", "--to", "zh", "Take one tablet in the morning and one tablet in the evening.")
    plain, drafted = (edgemt("translate", "-b", int4, *draft, *text) for draft in ((), ("--draft", "lookup")))
    assert plain.stdout == drafted.stdout and plain.stdout.strip()


@pytest.mark.slow
def test_the_fp32_bundle_equals_transformers_and_knows_english(gguf: Path, tmp_path: Path) -> None:
    done = edgemt("export", gguf, "--fp32", "-o", tmp_path / "fp32")
    assert compared(done) >= 90
    answer = edgemt(
        "translate", "-b", tmp_path / "fp32", "--from", "en", "--to", "zh", "The patient has a fever."
    )
    assert re.search(r"patient|fever|病|发", answer.stdout)
