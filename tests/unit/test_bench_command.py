"""`edgemt bench` as a user runs it, with a small real bundle."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support import one_sentence

DOCS = Path(__file__).parents[2] / "docs" / "bench.md"
QUICK = ("--rounds", "2", "--warmup", "0")
NOTES = "我头疼。\n请每天吃两片药，饭后服用。\nTake two tablets a day.\nShe is allergic to penicillin.\n"


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text(NOTES, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(edgemt, toy_bundle, tmp_path_factory):
    """One run of two bundles (the same twice, the second zipped) with all outputs: (result, JSON, HTML)."""
    from edgemt.bundle import pack

    folder = tmp_path_factory.mktemp("bench")
    notes = folder / "notes.txt"
    notes.write_text(NOTES, encoding="utf-8")
    pack(toy_bundle, folder / "zipped.edgemt")
    files = ("--json", folder / "run.json", "--report", folder / "run.html", "--workload", notes)
    bundles = ("-b", toy_bundle, "-b", folder / "zipped.edgemt")
    result = edgemt("bench", *bundles, *files, "--budget-ms", "60000", "--percentile", "95", *QUICK)
    assert result.returncode == 0, result.stderr.decode()
    assert sorted(p.name for p in folder.iterdir()) == ["notes.txt", "run.html", "run.json", "zipped.edgemt"]
    return result, json.loads((folder / "run.json").read_text()), (folder / "run.html").read_text()


def test_within_budget_is_0_and_says_so(run):
    result, data, _ = run
    assert result.stdout.decode().startswith("Within budget (p95, 60000 ms)")
    assert result.stderr == b""  # no terminal, no progress
    assert data["verdict"]["within_budget"]


def test_over_budget_is_1_and_names_bundle_and_bucket(edgemt, toy_bundle, notes, tmp_path):
    path = tmp_path / "run.json"
    options = ("--budget-ms", "0.001", "--workload", notes, "--json", path)
    result = edgemt("bench", "-b", toy_bundle, *options, *QUICK)
    assert result.returncode == 1
    over = json.loads(path.read_text())["verdict"]["over"]
    assert over
    first_line = result.stdout.decode().splitlines()[0]
    assert first_line.startswith("Over budget (p99, 0.001 ms): ")
    for found in over:
        assert found["bundle"] in first_line
        assert re.search(rf" at {found['bucket']} tokens", first_line)


def test_the_figures_are_those_of_the_raw_times(run):
    _, data, _ = run
    for bundle in data["bundles"]:
        texts = bundle["texts"]
        assert len(texts) == 4
        times = np.array([text["ms"] for text in texts])
        assert times.shape == (4, 2)
        assert (times > 0).all()
        overall = bundle["overall"]
        for name, q in (("p50", 50), ("p90", 90), ("p99", 99), ("budget_percentile", 95)):
            expected = np.percentile(times, q, method="inverted_cdf")
            assert overall[name]["ms"] == pytest.approx(expected, abs=1e-3)
            low, high = overall[name]["interval"]
            assert low - 1e-9 <= overall[name]["ms"] <= high + 1e-9
        assert overall["max_ms"] == pytest.approx(times.max(), abs=1e-3)
        tokens = sum(text["target_tokens"] for text in texts)
        assert overall["ms_per_target_token"] == pytest.approx(times.mean(axis=1).sum() / tokens, rel=1e-3)
        for group in bundle["buckets"]:
            chosen = [i for i, text in enumerate(texts) if text["bucket"] == group["tokens"]]
            assert group["timings"] == 2 * len(chosen)
            assert group["max_ms"] == pytest.approx(times[chosen].max(), abs=1e-3)
        assert {d["pair"] for d in bundle["directions"]} == {"zh-en", "en-zh"}


def test_bundles_are_told_apart_and_compared(run):
    _, data, _ = run
    first, second = data["bundles"]
    assert first["label"] != second["label"]
    assert "ratio_to_first" not in first["overall"]
    low, high = second["overall"]["ratio_to_first"]["interval"]
    assert low <= second["overall"]["ratio_to_first"]["ratio"] <= high
    assert second["bytes"] < first["bytes"]  # zipped


def test_fresh_processes_and_memory(run):
    _, data, _ = run
    for bundle in data["bundles"]:
        assert len(bundle["cold_starts"]) == 3
        for start in bundle["cold_starts"]:
            parts = ("python_s", "import_s", "load_s", "translate_s")
            assert all(start[name] > 0 for name in parts)
            assert start["first_s"] == pytest.approx(sum(start[name] for name in parts))
        assert bundle["peak_rss_bytes"] > 20e6


def test_every_key_of_the_json_is_documented(run):
    _, data, _ = run
    documented = DOCS.read_text(encoding="utf-8").split("## The JSON")[1]
    names = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`]*)`", documented))))
    free = {"versions", "environment"}  # their keys are names of packages and variables

    def keys(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield key
                yield from () if key in free else keys(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from keys(inner)

    assert set(keys(data)) - names == set()


def test_reports_hold_no_text_of_the_workload(run):
    _, data, html = run
    for line in NOTES.splitlines():
        assert line not in json.dumps(data, ensure_ascii=False)
        assert line not in html


FETCHING = ("src", "href", "xlink:href", "srcset", "data", "action", "background", "poster")


class Page(HTMLParser):
    """Every tag of the page, and every attribute that could make a browser fetch something."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.ids, self.attributes = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.attributes.append(values)
        self.ids += [values["id"]] if "id" in values else []
        self.references += [values[name] or "" for name in FETCHING if name in values]


def test_the_page_needs_nothing_but_itself(run):
    html = run[2]
    page = Page(html)
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)|@import", html)
    assert not [name for values in page.attributes for name in values if name.startswith("on")]
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_shows_plots_verdict_and_machine_and_fits_a_phone(run):
    _, data, html = run
    assert html.count("<svg") == 4  # lengths, shares in time, timeline, stages
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "Within budget (p95, 60000 ms)" in html
    assert data["machine"]["kernel"] in html
    for bundle in data["bundles"]:
        assert html.count(bundle["label"]) >= 4  # in three legends and above its table


def test_the_page_shows_heat_frequency_and_throttling(run):
    from edgemt.bench.page import page

    data = json.loads(json.dumps(run[1]))
    assert "throttled" not in page(data)
    look = {"throttle_flags": [], "other_cpus": 0.0, "watts": None}
    data["conditions"]["timeline"] = [
        {"at_s": at, "temperature_c": 50.0 + at, "frequency_mhz": 2400.0 - at, **look} for at in range(5)
    ]
    data["conditions"]["timeline"][3]["throttle_flags"] = ["throttled"]
    html = page(data)
    assert all(word in html for word in (">°C<", ">MHz<", ">throttled<", "50–54 °C", "2396–2400 MHz"))


def test_the_shipped_workload_is_the_default(edgemt, toy_bundle, tmp_path):
    path = tmp_path / "run.json"
    result = edgemt("bench", "-b", toy_bundle, "--rounds", "1", "--warmup", "0", "--json", path)
    assert result.returncode in (0, 1), result.stderr.decode()
    data = json.loads(path.read_text())
    assert data["workload"]["texts"] == len(data["bundles"][0]["texts"]) >= 120
    assert data["workload"]["buckets"] == [5, 10, 15, 25, 40, 60]
    assert data["settings"]["budget_ms"] == 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget-ms", "soon"), "--budget-ms is 'soon'"),
        (("--budget-ms", "-1"), "above 0"),
        (("--budget-ms", "nan"), "above 0"),
        (("--percentile", "101"), "at most 100"),
        (("--rounds", "0"), "at least 1"),
        (("--threads", "1.5"), "whole number"),
        (("--beam", "0"), "at least 1"),
        (("--workload", "no/such.tsv"), "cannot read the workload no/such.tsv"),
        (("--report", "no/such/report.html"), "cannot write --report no/such/report.html"),
        (("--json", "."), "cannot write --json"),
        (("-b", "no/such/bundle"), "no/such/bundle"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(edgemt, toy_bundle, tmp_path, options, message):
    bundle = () if "-b" in options else ("-b", toy_bundle)
    result = edgemt("bench", *bundle, *options, cwd=tmp_path)
    assert message in one_sentence(result)
    assert result.returncode == 2
    assert result.stdout == b""
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_bundle_is_not_taken_for_a_slow_one(edgemt, toy_bundle, notes, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(toy_bundle, broken)
    manifest = json.loads((broken / "manifest.json").read_text())
    victim = broken / next(name for name in manifest["files"] if name.endswith(".onnx"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x00")
    result = edgemt("bench", "-b", broken, "--workload", notes)
    assert "broken" in one_sentence(result)
    assert result.returncode == 2


def test_texts_in_other_languages_are_left_out_and_none_left_is_an_error(edgemt, toy_bundle, tmp_path):
    path, out = tmp_path / "texts.tsv", tmp_path / "run.json"
    path.write_text("source_lang\ttarget_lang\tsource\nde\ten\tKopfschmerzen.\n", encoding="utf-8")
    result = edgemt("bench", "-b", toy_bundle, "--workload", path)
    assert "none of the 1 texts" in one_sentence(result)
    assert result.returncode == 2
    path.write_text(path.read_text() + "en\tzh\tMy head hurts.\n", encoding="utf-8")
    options = ("--workload", path, "--json", out, "--budget-ms", "60000")
    assert edgemt("bench", "-b", toy_bundle, *options, *QUICK).returncode == 0
    data = json.loads(out.read_text())
    assert (data["workload"]["texts"], data["workload"]["skipped"]) == (1, 1)


WITHOUT_EXTRA = (
    "import sys\nsys.modules['matplotlib'] = sys.modules['jinja2'] = None\n"
    "from edgemt.cli import main\nsys.exit(main())"
)


def test_a_missing_extra_is_named_before_anything_is_measured(toy_bundle, notes, tmp_path):
    options = ["bench", "-b", toy_bundle, "--workload", notes, "--report", tmp_path / "report.html"]
    result = subprocess.run([sys.executable, "-c", WITHOUT_EXTRA, *options], capture_output=True, timeout=120)
    assert "pip install 'edgemt[report]'" in one_sentence(result)
    assert result.returncode == 2
    assert not (tmp_path / "report.html").exists()


def test_the_device_does_without_the_packages_of_the_report(toy_bundle, notes):
    options = ["bench", "-b", toy_bundle, "--workload", notes, "--budget-ms", "60000", *QUICK]
    result = subprocess.run([sys.executable, "-c", WITHOUT_EXTRA, *options], capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr.decode()
