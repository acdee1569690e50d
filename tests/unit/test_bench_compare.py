"""`--compare`: files in, verdict and pages out."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from bench_files import measured, row, simulated, times, write
from support import one_sentence

from edgemt.bench.compare import compare, run
from edgemt.bench.compare_table import headlines, render, warnings
from edgemt.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs" / "bench.md"


@pytest.fixture
def files(tmp_path):
    """A, the same again, and one that takes a tenth longer."""
    return (
        simulated(tmp_path / "a.json", 1),
        simulated(tmp_path / "again.json", 2),
        simulated(tmp_path / "slow.json", 3, factor=1.1),
    )


def test_a_tenth_slower_and_a_tenth_faster_are_said_so(files):
    a, again, slow = files
    (said,) = headlines(compare([[a], [slow]]))
    found = re.fullmatch(r"slow\.json is (\d+) % slower than a\.json \((\d+)–(\d+) % more time\)\.", said)
    assert found
    middle, low, high = map(int, found.groups())
    assert low < middle < high
    assert 5 <= middle <= 15
    (said,) = headlines(compare([[slow], [again]]))
    assert re.fullmatch(r"again\.json is \d+ % faster than slow\.json \(\d+–\d+ % less time\)\.", said)


def test_noise_is_not_called_a_difference(files):
    a, again, _ = files
    data = compare([[a], [again]])
    assert headlines(data) == [
        said := f"No difference shown between a.json and again.json ({_signed(data)})."
    ]
    assert re.search(r"\(−\d+ to \+\d+ %\)", said)
    assert data["pairs"][0]["verdict"] == "no difference shown"


def _signed(data):
    low, high = data["pairs"][0]["overall"]["interval"]
    return f"−{100 * (1 - low):.0f} to +{100 * (high - 1):.0f} %"


def test_figures_are_those_of_the_files(files):
    a, _, slow = files
    pair = compare([[a], [slow]])["pairs"][0]
    medians = [
        np.array([np.median(t["ms"]) for t in json.loads(path.read_text())["bundles"][0]["texts"]])
        for path in (a, slow)
    ]
    ratio = np.exp(np.mean(np.log(medians[1] / medians[0])))
    assert pair["overall"]["ratio"] == pytest.approx(ratio)
    for figure in (pair["overall"], *pair["buckets"]):
        low, high = figure["interval"]
        assert low < figure["ratio"] < high
        assert figure["other_ms"] / figure["base_ms"] == pytest.approx(figure["ratio"])
    assert [b["tokens"] for b in pair["buckets"]] == [5, 10, 15, 25, 40, 60]
    assert sum(b["texts"] for b in pair["buckets"]) == pair["overall"]["texts"] == 144


def test_several_runs_of_a_side_narrow_the_interval(tmp_path):
    def side(seed, count, **truth):
        return [simulated(tmp_path / f"{seed + n}.json", seed + n, run=0.003, **truth) for n in range(count)]

    base, other = side(1, 4), side(11, 4, factor=1.04)
    one, four = compare([base[:1], other[:1]]), compare([base, other])
    assert one["pairs"][0]["verdict"] == "no difference shown"
    assert four["pairs"][0]["verdict"] == "slower"
    assert four["pairs"][0]["base"]["runs"] == 4
    assert four["pairs"][0]["between_runs"]["df_from_runs"] == 6
    assert [len(s["runs"]) for s in four["sides"]] == [4, 4]


def test_disturbed_runs_get_no_verdict_and_are_named(tmp_path, files):
    disturbed = measured(
        [row(times(3, factor=1.5))], verdict__disturbed=["the load average was 5.0 on 4 cores"]
    )
    noisy = write(tmp_path / "noisy.json", disturbed)
    data = compare([[files[0]], [noisy]], max_slowdown=5)
    assert headlines(data)[0].startswith("Disturbed runs, no verdict on noisy.json against a.json (+")
    assert "Disturbed: noisy.json: the load average was 5.0 on 4 cores." in warnings(data)
    assert not data["slowdown"]
    assert "slower" not in render(data)
    assert run([[files[0]], [noisy]], max_slowdown=5) == 0
    assert run([[files[0]], [noisy]], max_slowdown=5, strict=True) == 3


def test_the_exit_code_follows_max_slowdown(files, capsys):
    a, again, slow = files
    assert run([[a], [slow]]) == 0
    assert run([[a], [slow]], max_slowdown=5) == 1
    assert run([[a], [slow]], max_slowdown=30) == 0
    assert run([[a], [again]], max_slowdown=0) == 0
    assert run([[slow], [a]], max_slowdown=0) == 0  # faster
    assert capsys.readouterr().out


def test_other_conditions_are_named(tmp_path, files):
    changed = measured(
        [row(times(2), target_tokens=11)],
        settings__threads=4,
        machine__model="Other board",
        machine__versions={"edgemt": "0.2.0", "numpy": "2.4.6"},
    )
    said = warnings(compare([[files[0]], [write(tmp_path / "b.json", changed)]]))
    assert "Not the same machine: A Board, B Other board." in said
    assert "Not the same threads: A 1, B 4." in said
    assert "Not the same edgemt: A 0.1.0, B 0.2.0." in said
    assert not [line for line in said if "numpy" in line]
    assert any("+10 % target tokens" in line for line in said)
    assert warnings(compare([[files[0]], [files[1]]])) == []


def test_rows_are_paired_by_label_and_the_rest_is_named(tmp_path):
    rows = [row(times(n), label) for n, label in enumerate(("greedy", "beam 4", "only here"))]
    a = write(tmp_path / "a.json", measured(rows))
    b = write(tmp_path / "b.json", measured([row(times(8, factor=2), "beam 4"), row(times(9), "greedy")]))
    data = compare([[a], [b]])
    assert [(p["base"]["label"], p["verdict"]) for p in data["pairs"]] == [
        ("greedy", "no difference shown"),
        ("beam 4", "slower"),
    ]
    assert headlines(data)[1].startswith("beam 4, B against A: b.json is ")
    assert "Rows without a partner: only here (A)." in warnings(data)


def test_a_row_each_is_a_pair_whatever_it_is_called(tmp_path):
    a = write(tmp_path / "a.json", measured([row(times(1), "fp32")]))
    b = write(tmp_path / "b.json", measured([row(times(2, factor=0.5), "int8")]))
    data = compare([[a], [b]])
    assert data["pairs"][0]["verdict"] == "faster"
    assert "fp32 → int8" in render(data)


def test_three_files_are_two_comparisons_with_the_first(files):
    data = compare([[path] for path in files])
    assert [(p["base"]["side"], p["other"]["side"]) for p in data["pairs"]] == [("A", "B"), ("A", "C")]


def test_texts_that_a_run_lacks_are_left_out_and_counted(tmp_path, files):
    part = row(times(2))
    part["texts"] = part["texts"][3:]
    data = compare([[files[0]], [write(tmp_path / "part.json", measured([part]))]])
    assert data["pairs"][0]["texts"] == 141
    assert any(line.startswith("Left out: 3 texts") for line in warnings(data))


def test_files_are_told_apart_by_path_where_their_names_are_alike(tmp_path, files):
    (tmp_path / "sub").mkdir()
    other = simulated(tmp_path / "sub" / "a.json", 9)
    assert str(other) in headlines(compare([[files[0]], [other]]))[0]


GOOD = measured([row(times(1))])
OPEN = {"kind": "open", "rate_per_s": 2.0, "arrivals": "poisson", "soak_minutes": None}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("no json at all", "is not JSON"),
        ("[1, 2]", "no result of edgemt bench"),
        ({**GOOD, "format": "edgemt-bundle"}, "holds no measurement"),
        ({**GOOD, "kind": "projected"}, "holds no measurement (projected)"),
        ({**GOOD, "format_version": "2.0"}, "has format version 2.0"),
        ({**GOOD, "workload": {"name": "notes.txt", "sha256": "bb"}}, "different workloads"),
        ({**GOOD, "load": OPEN}, "poisson arrivals of 2 texts a second"),
        ({k: v for k, v in GOOD.items() if k != "bundles"}, "is damaged"),
        (measured([row(np.zeros((144, 1)))]), "is damaged"),
        (measured([{**row(times(1)), "texts": []}]), "no text in common"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(tmp_path, files, data, message):
    bad = write(tmp_path / "bad.json", data)
    with pytest.raises(UsageError) as caught:
        compare([[files[0]], [bad]])
    assert message in str(caught.value)
    assert "bad.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_one_file_and_the_same_file_are_refused(files, tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*none\.json \(No such file"):
        compare([[files[0]], [tmp_path / "none.json"]])
    with pytest.raises(UsageError, match="given 1 file of one side"):
        compare([[files[0]]])
    with pytest.raises(UsageError, match="twice"):
        compare([[files[0]], [files[0]]])
    with pytest.raises(UsageError, match="no row of"):
        two = [row(times(1), name) for name in ("x", "y")]
        compare([[files[0]], [write(tmp_path / "b.json", measured(two))]])


def test_a_version_1_0_file_is_read(files, tmp_path):
    old = write(tmp_path / "old.json", {**GOOD, "format_version": "1.0"})
    assert compare([[files[1]], [old]])["pairs"]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.references = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data")]


def test_json_and_page_hold_what_the_table_says(files, tmp_path):
    a, again, slow = files
    out = {"json_path": tmp_path / "out" / "c.json", "report": tmp_path / "out" / "c.html"}
    (tmp_path / "out").mkdir()
    assert run([[a], [again], [slow]], **out) == 0
    data = json.loads(out["json_path"].read_text())
    html = out["report"].read_text()
    assert (data["format"], data["kind"]) == ("edgemt-bench-comparison", "comparison")
    for line in headlines(data):
        assert line in html
    page = Tags(html)
    assert page.tags.count("svg") == 2
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["c.html", "c.json"]


def test_what_cannot_be_written_is_said_first(files, tmp_path, capsys):
    with pytest.raises(UsageError, match="cannot write --json"):
        run([[files[0]], [files[1]]], json_path=tmp_path / "none" / "c.json")
    assert capsys.readouterr().out == ""


def test_the_command_compares_files_and_measures_nothing(edgemt, files):
    a, again, slow = files
    result = edgemt("bench", "--compare", a, slow, "--max-slowdown", "5")
    assert result.returncode == 1
    assert "slow.json is " in result.stdout.decode()
    assert edgemt("bench", "--compare", a, slow).returncode == 0
    result = edgemt("bench", "--compare", a, again, "--compare", slow)
    assert result.returncode == 0, result.stderr.decode()
    assert "slow.json is " in result.stdout.decode()
    assert "a.json (+1)" in result.stdout.decode()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--compare", "a.json", "none.json"), "cannot read none.json"),
        (("--compare", "a.json"), "given 1 file"),
        (("--compare", "a.json", "slow.json", "--max-slowdown", "much"), "--max-slowdown is 'much'"),
        (("--compare", "a.json", "slow.json", "--modes", "greedy"), "measures nothing"),
        (("--max-slowdown", "5"), "name the runs with --compare"),
    ],
)
def test_the_command_refuses_in_one_sentence(edgemt, files, options, message):
    result = edgemt("bench", *options, cwd=files[0].parent)
    assert message in one_sentence(result)
    assert result.returncode == 2
    assert result.stdout == b""
