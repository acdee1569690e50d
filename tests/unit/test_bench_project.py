"""`--project`: ranges from counted instructions and bytes read, labelled as what they are."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from support import one_sentence

from edgemt.bench import device_model as model
from edgemt.bench.contenders import Mode
from edgemt.bench.device_model import Product
from edgemt.bench.project import Passes, Settings, cache_bytes, counted, products, project, run, seconds
from edgemt.bench.workload import read_workload
from edgemt.bundle import open_bundle
from edgemt.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs" / "projection.md"
FIT = {"base": 2e6, "per_source_token": 0.5e6, "per_target_token": 2e6}


@pytest.fixture(scope="module")
def bundle(toy_bundle):
    return open_bundle(toy_bundle)


@pytest.fixture
def counts(bundle, tmp_path):
    """Instruction counts as tests/device writes them, for the toy bundle."""
    return written(tmp_path / "instructions.json", [entry(bundle)])


def entry(bundle, **changes):
    manifest = bundle.manifest
    values = {"name": manifest.name, "digest": manifest.digest, "precision": manifest.precision, "beam": 1}
    return values | {"threads": 1, "tools": {"qemu": "7.2"}, "fit": FIT, "buckets": []} | changes


def written(path, bundles, **changes):
    head = {"format": "edgemt-instructions", "format_version": "1.0", "cpu": "cortex-a76", "how": "counted"}
    path.write_text(json.dumps({**head, "bundles": bundles} | changes))
    return path


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("我头疼。\nTake two tablets a day.\nShe is allergic to penicillin.\n", encoding="utf-8")
    return read_workload(path)


@pytest.fixture(scope="module")
def draws():
    return model.draw(model.read_device("pi5"), 200)


def test_published_figures_lie_in_the_ranges_or_the_page_says_how_far_off(draws):
    page = DOCS.read_text(encoding="utf-8")
    device = model.read_device("pi5")
    assert model.table(device) in page
    assert model.ranges(device) in page
    inside = 0
    for point in device.points:
        low, middle, high = model.predict(model.draw(device), point)
        assert low < middle < high
        assert point["address"].startswith("https://")
        assert low / 1.5 < point["published"] < high * 1.5
        inside += low <= point["published"] <= high
    assert inside >= 3
    assert inside >= 0.8 * len(device.points)


def test_what_is_read_from_memory_bounds_a_product_from_below(draws):
    big = Product(100_000_000, 100_000_000)
    for threads in (1, 4):
        fastest = 100e6 / 12.4e9
        assert (model.products_s(draws, [big], 1, threads) > fastest).all()
    one, four = (np.median(model.products_s(draws, [big], 1, threads)) for threads in (1, 4))
    assert 0.5 * one < four < one  # bound by memory: four threads are no four times


def test_more_rows_cost_arithmetic_but_the_weights_are_read_once(draws):
    product = [Product(1_000_000, 1_000_000)]
    one, twenty = (np.median(model.products_s(draws, product, rows, 1)) for rows in (1, 20))
    assert one < twenty < 20 * one


def test_splitting_a_small_product_does_not_pay(draws):
    small, large = [Product(60_000, 60_000)], [Product(2_500_000, 2_500_000)]
    assert np.array_equal(model.products_s(draws, small, 1, 1), model.products_s(draws, small, 1, 4))
    split = [Product(70_000, 70_000)]
    assert (model.products_s(draws, split, 1, 4) > model.products_s(draws, split, 1, 1)).mean() > 0.5
    gain = model.products_s(draws, large, 30, 1) / model.products_s(draws, large, 30, 4)
    assert 1.5 < np.median(gain) < 4


def test_caches_keep_a_small_model_and_perhaps_some_of_a_large_one(draws):
    small, middle, huge = (model.kept_share(draws, size, 1) for size in (1_000_000, 4_400_000, 400_000_000))
    assert small.min() >= 0.5
    assert middle.min() < 0.1
    assert 0.3 < middle.max() < 0.6
    assert huge.max() < 0.01
    assert (model.kept_share(draws, 4_400_000, 4) >= middle).all()


def test_serial_instructions_do_not_get_faster_with_threads(bundle, draws):
    heavy = entry(bundle, fit={**FIT, "base": 1e9})
    text = [Passes([10], [10])]
    one, four = (seconds(draws, bundle.manifest, heavy, text, threads) for threads in (1, 4))
    assert np.median(four) > 0.95 * np.median(one)
    assert 1e9 / (2.2 * 2.4e9) < np.median(one) < 1.1e9 / (1.2 * 2.4e9)


def test_longer_texts_and_more_sentences_take_longer(bundle, draws):
    texts = [Passes([10], [10]), Passes([10], [20]), Passes([20], [20]), Passes([10, 10], [10, 10])]
    found = np.median(seconds(draws, bundle.manifest, entry(bundle), texts, 1), axis=0)
    assert found[0] < found[1] < found[2] <= found[3]


def test_bytes_are_those_of_the_manifest(default_bundle):
    manifest = open_bundle(default_bundle).manifest
    encoder, step = products(manifest)
    weights = sum(layer["bytes"] for layer in manifest.layers if layer["op"] == "MatMul")
    assert sum(p.bytes for p in encoder) + sum(p.bytes for p in step) == weights
    assert all(p.elements == p.bytes for p in encoder + step)  # int8
    # Two layers of keys and values, 256 floats a position; steps read 26 of the source, 1 to 25 of their own.
    assert cache_bytes(manifest, 26, 25) == 2 * 2 * 256 * 4 * 25 * (26 + 13)


def test_a_family_without_steps_is_refused(bundle):
    manifest = dataclasses.replace(bundle.manifest, family="decoder")
    with pytest.raises(UsageError, match=r"\(decoder\) has no decoding step to project"):
        products(manifest)


def test_everything_is_labelled_projected(bundle, notes, counts, tmp_path, capsys):
    path = tmp_path / "projection.json"
    assert run("pi5", [bundle], notes, Settings(4, 99, None), json_path=path, counts=counts) == 0
    said = capsys.readouterr().out
    assert said.startswith("Projected for a Raspberry Pi 5, not measured")
    assert said.count("ms, projected") == len(re.findall(r"\bms\b", said)) == 3
    data = json.loads(path.read_text())
    assert (data["format"], data["kind"], data["verdict"]) == ("edgemt-projection", "projected", None)
    (row,) = data["bundles"]
    for group in (row["overall"], *row["buckets"]):
        for name in ("p50", "p90", "p99", "budget_percentile"):
            assert 0 < group[name]["low"] < group[name]["middle"] < group[name]["high"]
        assert group["p50"]["middle"] <= group["p99"]["middle"]
    assert data["device"]["parameters"]["serial_ipc"]["basis"].startswith("assumed")


def test_a_projection_repeats(bundle, notes, counts):
    device = model.read_device("pi5")
    first, second = (project(device, [bundle], notes, Settings(1, 99, None), counts=counts) for _ in range(2))
    assert first["bundles"] == second["bundles"]


def test_a_budget_is_kept_only_if_the_slow_end_keeps_it(bundle, notes, counts, capsys):
    data = project(model.read_device("pi5"), [bundle], notes, Settings(1, 99, None), counts=counts)
    figures = [bucket["p99"] for bucket in data["bundles"][0]["buckets"]]
    slow, middle = max(f["high"] for f in figures), max(f["middle"] for f in figures)
    assert run("pi5", [bundle], notes, Settings(1, 99, slow * 1.01), counts=counts) == 0
    assert "Projected to be within budget" in capsys.readouterr().out
    assert run("pi5", [bundle], notes, Settings(1, 99, middle * 1.01), counts=counts) == 1
    assert "Not projected to be within budget" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "mode", "message"),
    [
        ({"digest": "0" * 64}, "greedy", "there are no instruction counts of"),
        ({}, "beam4", "--beam 4 --write"),
        ({}, "glossary", "there are no instruction counts of"),
    ],
)
def test_an_uncounted_bundle_is_refused_with_the_command_that_counts(
    bundle, tmp_path, changes, mode, message
):
    path = written(tmp_path / "counts.json", [entry(bundle, **changes)])
    with pytest.raises(UsageError) as caught:
        counted(bundle, Mode.parse(mode), path)
    assert message in str(caught.value)
    assert f"python -m tests.device.count {bundle.path}" in str(caught.value)
    assert "docs/emulated.md" in str(caught.value)


def test_missing_damaged_and_newer_counts_are_refused(bundle, tmp_path):
    greedy = Mode.parse("greedy")
    with pytest.raises(UsageError, match="there are no instruction counts"):
        counted(bundle, greedy, tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        counted(bundle, greedy, broken)
    newer = written(tmp_path / "newer.json", [entry(bundle)], format_version="2.0")
    with pytest.raises(UsageError, match="no instruction counts of format 1"):
        counted(bundle, greedy, newer)


def test_an_unknown_device_and_too_many_threads_are_refused(bundle, notes, counts):
    with pytest.raises(UsageError, match="no model of the device 'pi9'; give --project pi5"):
        run("pi9", [bundle], notes, Settings(1, 99, None), counts=counts)
    with pytest.raises(UsageError, match="--threads is 8, and a Raspberry Pi 5 has 4 cores"):
        run("pi5", [bundle], notes, Settings(8, 99, None), counts=counts)


def test_counts_of_a_later_minor_version_are_read(bundle, tmp_path):
    path = written(tmp_path / "counts.json", [entry(bundle, news=1)], format_version="1.7")
    assert counted(bundle, Mode.parse("greedy"), path)["fit"] == FIT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--project", "pi5"), "there are no instruction counts of"),
        (("--project", "pi5", "--budget-ms", "40"), "passes or fails no budget"),
        (("--project", "pi5", "--report", "page.html"), "leave out --report"),
        (("--project", "pi5", "--threads", "auto"), "--threads is 'auto'"),
        (("--accept-projection",), "name the device with --project"),
        (("--project", "pi5", "--compare", "a.json", "b.json"), "give one of them"),
    ],
)
def test_the_command_refuses_in_one_sentence(edgemt, toy_bundle, tmp_path, options, message):
    result = edgemt("bench", "-b", toy_bundle, *options, cwd=tmp_path)
    assert message in one_sentence(result)
    assert result.returncode == 2
    assert result.stdout == b""


def test_the_default_bundle_was_counted(default_bundle):
    from edgemt.bench.project import INSTRUCTIONS

    if not INSTRUCTIONS.is_file():
        pytest.skip("edgemt/data/instructions.json is not committed yet")
    assert counted(open_bundle(default_bundle), Mode.parse("greedy"))["fit"]["per_target_token"] > 0


def test_more_memory_bandwidth_never_makes_it_slower(bundle):
    device = model.read_device("pi5")
    parameters = {name: dict(p) for name, p in device.parameters.items()}
    for name in ("memory_gb_s_one", "memory_gb_s_all"):
        parameters[name]["range"] = [100, 101]
    faster = dataclasses.replace(device, parameters=parameters)
    text = [Passes([20], [20])]
    slow, fast = (
        seconds(model.draw(d, 200), bundle.manifest, entry(bundle), text, 1) for d in (device, faster)
    )
    assert (fast <= slow).all()
