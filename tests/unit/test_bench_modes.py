"""Rows for modes of search: what a contender does, and what a run makes of it."""

import json

import pytest
from support import one_sentence

from edgemt.bench.contenders import BundleContender, Mode
from edgemt.bench.workload import Sentence, read_workload
from edgemt.errors import UsageError
from edgemt.translator import load

QUICK = ("--rounds", "2", "--warmup", "0", "--budget-ms", "60000")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.tsv"
    lines = ("source\tterms", "我头疼。\t头疼=headache", "Take two tablets a day.\t")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("greedy", Mode("greedy", 1)),
        ("beam1", Mode("greedy", 1)),
        ("beam4", Mode("beam 4", 4)),
        ("beam 12", Mode("beam 12", 12)),
        ("glossary", Mode("glossary", None, True)),
    ],
)
def test_names_of_modes(text, mode):
    assert Mode.parse(text) == mode


def test_a_mode_does_what_its_name_says(default_bundle):
    translator = load(default_bundle)
    sentence = Sentence(1, "他昨天做了手术。", None, "zh", "en", {"手术": "intervention"})
    plain, given = (
        BundleContender("x", translator, mode).translate(sentence)
        for mode in (Mode.of_beam(4), Mode("glossary", glossary=True))
    )
    assert plain == translator.translate(sentence.source, target_lang="en", beam=4)
    assert "intervention" in given
    assert "intervention" not in plain


def test_a_row_for_each_mode(edgemt, toy_bundle, texts, tmp_path):
    out = tmp_path / "run.json"
    result = edgemt(
        *("bench", "-b", toy_bundle, "--modes", "greedy,beam4,glossary", "--workload", texts),
        *(*QUICK, "--json", out),
    )
    assert result.returncode == 0, result.stderr.decode()
    data = json.loads(out.read_text())
    rows = data["bundles"]
    assert [(row["mode"], row["beam"], row["texts_with_terms"]) for row in rows] == [
        ("greedy", 1, 0),
        ("beam 4", 4, 0),
        ("glossary", rows[2]["beam"], 1),
    ]
    assert len({row["label"] for row in rows}) == 3
    for row in rows:
        assert row["mode"] in row["label"]
        assert row["label"] in result.stdout.decode()
        assert (row["kind"], len(row["cold_starts"])) == ("bundle", 3)
    span = data["conditions"]["span"]
    assert sum(row["page_faults"]["minor"] for row in rows) <= span["minor_faults"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--modes", "fast"), "there is no mode 'fast'"),
        (("--modes", "beam0"), "there is no mode 'beam0'"),
        (("--modes", "greedy,"), "there is no mode ''"),
        (("--modes", "greedy", "--beam", "4"), "--beam and --modes"),
        (("--modes", "glossary", "--workload", "plain.txt"), "no terms for --modes glossary"),
    ],
)
def test_modes_that_cannot_be(edgemt, toy_bundle, tmp_path, options, message):
    (tmp_path / "plain.txt").write_text("Take two tablets.\n")
    result = edgemt("bench", "-b", toy_bundle, *options, cwd=tmp_path)
    assert message in one_sentence(result)
    assert result.returncode == 2


def test_the_shipped_texts_have_terms_that_occur_in_them():
    sentences = read_workload(None).sentences
    assert sum(bool(s.terms) for s in sentences) >= 50
    for sentence in sentences:
        for term in sentence.terms:
            assert term.lower() in sentence.source.lower()


@pytest.mark.parametrize("terms", ["头疼", "头疼=", "=headache"])
def test_terms_that_lack_a_side(tmp_path, terms):
    path = tmp_path / "texts.tsv"
    path.write_text(f"source\tterms\n我头疼。\t{terms}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"line 2 .* has the terms"):
        read_workload(path)
