"""benchmarks/causal_quality.py and causal_peers.py from end to end, with tiny models that know some lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT))

from causal_fixtures import learnt_by_heart

from benchmarks.causal_quality_jobs import Job, Row, tagged
from benchmarks.causal_quality_score import draft, kept_tag, tags
from edgemt.errors import EdgemtError

TASKS = "plain,references,glossary,tags,sentences,draft"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same model in FP32 and in 4 bits, in the blocks that drafts need on x86."""
    from edgemt.export.pipeline import Request, export

    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = learnt_by_heart(folder, steps=60)
    found = []
    for precision in ("fp32", "int4"):
        found.append(folder / precision)
        export(Request(checkpoint, found[-1], precision=precision, gate=False, int4_block=32))
    return found


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_every_task_is_answered_once_and_a_stopped_run_goes_on(bundles: list[Path], tmp_path: Path) -> None:
    state, data = tmp_path / "state.jsonl", tmp_path / "data.json"
    asked = [
        *bundles,
        "--rows",
        "3",
        "--tasks",
        TASKS,
        "--draft",
        "lookup",
        "--prompts",
        "4",
        "--state",
        state,
    ]
    pages = ["--json", data, "--write", tmp_path / "page.md", "--sentences", tmp_path / "sentences.md"]
    first = script("causal_quality.py", *asked, *pages)
    assert first.returncode == 0, first.stderr
    lines = state.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines})
    found = json.loads(data.read_text(encoding="utf-8"))
    assert found["bundles"] == ["fp32", "int4"]
    scores = found["plain"]["fp32"]["clinical"]["zh-en"]
    assert scores["bleu"]["drop"] == scores["chrf"]["drop"] == 0 and scores["tokens_equal"] == 1
    assert 0 < found["plain"]["int4"]["clinical"]["zh-en"]["chrf"]["candidate"] < 100
    for direction, one in found["references"]["int4"].items():
        base = found["references"]["fp32"][direction]
        assert one["tokens"] == base["tokens"] > base["rows"] == 3 and base["ratio"] == base["same"] == 1
        assert one["perplexity"] > 1 and one["interval"][0] <= one["ratio"] <= one["interval"][1]
        assert one["ratio"] == pytest.approx(one["perplexity"] / base["perplexity"])
    for directions in found["glossary"].values():
        for ways in directions.values():  # whatever the model knows, a glossary is obeyed
            assert ways["glossary"]["present"] == ways["glossary"]["terms"] > 0
    for one in found["draft"].values():
        assert one["prompts"] == one["equal"] == 4 and one["accepted"] <= one["proposed"]
    sentences = (tmp_path / "sentences.md").read_text(encoding="utf-8")
    assert (
        sentences.count("- fp32: ") == sentences.count("- int4: ") == sentences.count("- reference: ") == 40
    )

    # Killed in the middle of a line: what was there is not asked for again.
    state.write_text("\n".join(lines[:-9]) + "\n" + lines[-9][:30], encoding="utf-8")
    again = script("causal_quality.py", *asked)
    assert again.returncode == 0, again.stderr
    assert "int4: 9 of " in again.stderr and "fp32: " not in again.stderr
    keys = [
        sorted(json.loads(line)["key"] for line in some) for some in (lines, state.open(encoding="utf-8"))
    ]
    assert keys[0] == keys[1]


def test_the_peers_run_counts_every_round_and_shows_both(bundles: list[Path], tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    contenders = ["--bundle", bundles[0], "--bundle", f"{bundles[1]}+lookup+prefix"]
    sizes = [
        "--threads",
        "1",
        "--lengths",
        "48",
        "--new",
        "5",
        "--texts",
        "2",
        "--sentences",
        "2",
        "--rounds",
        "2",
    ]
    done = script("causal_peers.py", *contenders, *sizes, "--json", data)
    assert done.returncode == 0, done.stderr
    assert "edgemt fp32 |" in done.stdout and "edgemt int4, look-up, cached prefix |" in done.stdout
    found = json.loads(data.read_text(encoding="utf-8"))
    assert str(bundles[0].parent) not in data.read_text(encoding="utf-8")  # folders are private
    (block,) = found["blocks"]
    assert [len(prompts) for prompts in block["first_s"]] == [4, 4]
    assert all(len(rounds) == 2 and min(rounds) > 0 for prompts in block["first_s"] for rounds in prompts)
    for prompt, answer in zip(found["prompts"], block["answers"][0], strict=True):
        if prompt["kind"] != "sentence":
            assert prompt["tokens"] == pytest.approx(48, abs=3)
            assert len(answer["tokens"]) == prompt["most"] == 5
    assert min(block["peak_rss_bytes"]) > 20e6


def test_what_cannot_be_measured_is_said_in_one_line(bundles: list[Path], tmp_path: Path) -> None:
    state = ["--state", tmp_path / "state.jsonl"]
    for name, arguments, said in (
        ("causal_quality.py", [bundles[0], "--tasks", "draft", *state], "needs --draft"),
        ("causal_quality.py", [tmp_path / "none", *state], "none"),
        ("causal_peers.py", ["--bundle", bundles[0]], "another contender"),
        ("causal_peers.py", ["--bundle", f"{bundles[0]}+wings", "--bundle", bundles[1]], "no 'wings'"),
        ("causal_peers.py", ["--bundle", bundles[0], "--gguf", "some.gguf"], "--llama-python"),
    ):
        done = script(name, *arguments)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
        assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("每次2.5毫升，每天三次。", "每次<b>2.5</b>毫升，每天三次。"),
        ("If it hurts, tell me.", "<b>If it hurts</b>, tell me."),
        ("我头疼。", "<b>我头疼</b>。"),
    ],
)
def test_a_tag_goes_around_a_number_a_clause_or_all(text: str, expected: str) -> None:
    assert tagged(text) == expected


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("a <b>2</b> b", "2"),
        ("a 2 b", None),
        ("<b>a</b> <b>b</b>", None),
        ("<b>a", None),
        ("<b> </b>a", None),
    ],
)
def test_a_tag_is_kept_only_whole_and_once_and_around_something(text: str, held: str | None) -> None:
    assert kept_tag(text) == held


def test_a_tag_around_everything_is_not_the_tag_around_a_part() -> None:
    row = Row("clinical", "en", "zh", "Take <b>2</b> tablets.", "服两片。")
    jobs = [Job("tags", "", row), Job("tags", "", row._replace(source="<b>Yes</b>."))]
    answers = {jobs[0]: {"text": "<b>服2片</b>。"}, jobs[1]: {"text": "<b>是</b>。"}}
    found = tags(jobs, answers)["en-zh"]
    assert found["kept"] == 2 and (found["around_a_part"], found["parts"]) == (0, 1)
    assert (found["around_the_number"], found["numbers"]) == (0, 1)


def test_an_answer_that_a_draft_changed_is_counted_as_such() -> None:
    row = Row("clinical", "zh", "en", "好。", "Good.")
    jobs = [Job("draft", "lookup", row), Job("draft", "lookup", row._replace(source="不好。"))]
    one = {"plain_s": 2.0, "draft_s": 1.0, "plain_tokens": [1, 2], "draft_tokens": [1, 2]}
    one |= {"steps": 1, "proposed": 2, "accepted": 1, "tokens": 2}
    found = draft(jobs, {jobs[0]: one, jobs[1]: one | {"draft_tokens": [1, 3]}})
    assert (found["equal"], found["prompts"], found["accepted"]) == (1, 2, 2)
    assert found["speedup"] == pytest.approx(2)


def test_a_prompt_for_the_emulator_has_the_length_asked_for(bundles: list[Path]) -> None:
    from edgemt.bundle import open_bundle
    from tests.device.count_causal import elements_of, prompt_of

    chat = open_bundle(bundles[1]).manifest.chat
    for length in (40, 200):
        ids = prompt_of(bundles[1], length)
        assert len(ids) == length
        assert ids[: len(chat["before"])] == chat["before"] and ids[-len(chat["after"]) :] == chat["after"]
    assert elements_of(bundles[0]) == elements_of(bundles[1])  # whatever their type
    with pytest.raises(EdgemtError):
        elements_of(bundles[0].parent / "none")
