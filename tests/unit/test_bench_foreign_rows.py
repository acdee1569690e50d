"""Commands as rows of a run, with real processes: beside a bundle, alone, and failing in every way."""

import json
import sys

import pytest
from support import one_sentence

NOTES = "我头疼。\n请每天吃两片药，饭后服用。\nTake two tablets a day.\nShe is allergic to penicillin.\n"
QUICK = ("--rounds", "2", "--warmup", "0", "--budget-ms", "60000")
ECHO = """import sys
for line in sys.stdin:
    print(line.strip()[::-1], flush=True)
"""


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text(NOTES, encoding="utf-8")
    return path


@pytest.fixture
def echo(tmp_path):
    """A translator as a script in a folder of somebody's."""
    folder = tmp_path / "private"
    folder.mkdir()
    script = folder / "echo.py"
    script.write_text(ECHO)
    return f"{sys.executable} {script}"


def test_a_command_beside_a_bundle(edgemt, toy_bundle, notes, echo, tmp_path):
    out, page = tmp_path / "run.json", tmp_path / "run.html"
    commands = ("--command", echo, "--command", "cat")
    files = ("--json", out, "--report", page)
    result = edgemt("bench", "-b", toy_bundle, *commands, "--workload", notes, *QUICK, *files)
    assert result.returncode == 0, result.stderr.decode()
    data = json.loads(out.read_text())
    bundle, script, cat = data["bundles"]
    assert [row["kind"] for row in data["bundles"]] == ["bundle", "command", "command"]
    assert cat["label"] == "cat" and "echo.py" in script["label"]
    for row in (script, cat):
        assert [len(text["ms"]) for text in row["texts"]] == [2] * 4
        assert len(row["cold_starts"]) == 3
        assert row["cold_start_s"] > 0 and row["peak_rss_bytes"] > 1e5
        assert row["load_s"] is row["mode"] is row["digest"] is None
        assert row["overall"]["target_tokens_per_s"] is row["overall"]["stages"] is None
        # The bundle's tokens stand in for the command's: both have the same lengths.
        for text, other in zip(row["texts"], bundle["texts"], strict=True):
            assert (text["bucket"], text["source_tokens"]) == (other["bucket"], other["source_tokens"])
            assert text["target_tokens"] is None
        assert "ratio_to_first" in row["overall"]
    # An interpreter has to be started, cat has not, and it holds more memory.
    assert script["peak_rss_bytes"] > cat["peak_rss_bytes"]
    for text in (out.read_text(), page.read_text(), result.stdout.decode()):
        assert "private" not in text


def test_commands_alone_with_languages(edgemt, notes, tmp_path):
    out = tmp_path / "run.json"
    commands = ("--command", "sed -u s/^/{source_lang}-{target_lang}:/", "--no-bundle")
    result = edgemt("bench", *commands, "--workload", notes, *QUICK, "--json", out)
    assert result.returncode == 0, result.stderr.decode()
    data = json.loads(out.read_text())
    (row,) = data["bundles"]
    assert {text["pair"] for text in row["texts"]} == {"zh-en", "en-zh"}
    assert data["workload"]["skipped"] == 0
    assert [text["source_tokens"] for text in row["texts"]] == [None] * 4
    assert {text["bucket"] for text in row["texts"]} == {5, 10}  # estimated from characters
    assert row["overall"]["p50"]["ms"] > 0


def test_lines_of_columns(edgemt, tmp_path):
    """A command that insists on three columns shows what it is given."""
    script = tmp_path / "columns.py"
    script.write_text(
        "import sys\nfor line in sys.stdin:\n"
        "    source, target, text = line.rstrip('\\n').split('\\t')\n"
        "    assert (source, target, text) == ('zh', 'en', '我头疼。')\n    print(text, flush=True)\n",
        encoding="utf-8",
    )
    command = ("--command", f"{sys.executable} {script}", "--no-bundle", "--text", "我头疼。")
    assert edgemt("bench", *command, "--command-lines", "tsv", *QUICK).returncode == 0
    result = edgemt("bench", *command, "--command-lines", "text", *QUICK)
    assert "not enough values to unpack" in one_sentence(result)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-program-here", "cannot start"),
        ("sleep 60", "gave no answer within 0.5 s"),
        ("sed -u 2q", "with a line still unanswered"),
        ("sh -c 'read line; echo out of memory >&2; exit 9'", "out of memory"),
        ("sh -c 'while read line; do echo $line; echo $line; done'", "more than one line"),
        ("", "the command is empty"),
        ("cat 'x", "not closed"),
    ],
)
def test_a_command_that_fails_leaves_nothing_behind(edgemt, toy_bundle, notes, tmp_path, command, message):
    files = ("--json", tmp_path / "run.json", "--report", tmp_path / "run.html")
    options = ("--command", command, "--command-timeout", "0.5", "--workload", notes)
    result = edgemt("bench", "-b", toy_bundle, *options, *QUICK, *files)
    assert message in one_sentence(result)
    assert result.returncode == 2
    assert result.stdout == b""
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_command_that_dies_while_it_is_measured(edgemt, toy_bundle, notes, tmp_path):
    """It answers the fresh starts (4 texts, 1, 1) and the first pass, then ends in the timed rounds."""
    command = "sh -c 'for i in 1 2 3 4 5 6; do read line && echo $line; done; echo worn out >&2'"
    options = ("--command", command, "--workload", notes, "--rounds", "50", "--json", tmp_path / "run.json")
    result = edgemt("bench", "-b", toy_bundle, *options)
    assert "after 6 answers" in one_sentence(result) and "worn out" in one_sentence(result)
    assert result.returncode == 2
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--no-bundle",), "give a --command"),
        (("--no-bundle", "--command", "cat", "--modes", "greedy"), "measures commands alone"),
        (("--command", "cat", "--command-timeout", "never"), "--command-timeout is 'never'"),
        (("--text", " "), "--text is empty"),
        (("--text", "x", "--workload", "y"), "leave out one of them"),
    ],
)
def test_options_that_do_not_go_together(edgemt, options, message):
    result = edgemt("bench", *options)
    assert message in one_sentence(result)
    assert result.returncode == 2


def test_a_single_text_of_several_sentences(edgemt, toy_bundle, tmp_path):
    out = tmp_path / "run.json"
    text = "我头疼。\n请每天吃两片药，饭后服用。"
    options = (
        "--text",
        text,
        "--modes",
        "greedy,glossary",
        "--glossary",
        "头疼=headache",
        "--command",
        "cat",
    )
    result = edgemt("bench", "-b", toy_bundle, *options, *QUICK, "--json", out)
    assert result.returncode == 0, result.stderr.decode()
    data = json.loads(out.read_text())
    assert data["workload"]["texts"] == 1
    assert "头疼" not in out.read_text() + result.stdout.decode()
    assert [row["texts_with_terms"] for row in data["bundles"]] == [0, 1, 0]


def test_terms_that_occur_nowhere(edgemt, toy_bundle):
    options = ("--text", "我头疼。", "--modes", "glossary", "--glossary", "手术=surgery")
    result = edgemt("bench", "-b", toy_bundle, *options)
    assert "no term of --glossary occurs" in one_sentence(result)
