"""Decoder-only models in static INT8: what is fused, what is folded, what it says, and its cache."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from causal_bundles import write_graphs
from causal_fixtures import clinical_pairs, learnt_by_heart
from causal_models import CASES, EOS, VOCABULARY, checkpoint_of, model_of

import edgemt
from edgemt.bundle import open_bundle
from edgemt.calibration.cache import CacheRanges
from edgemt.calibration.samples import Samples
from edgemt.calibration.smooth import find_factors, folds, smooth
from edgemt.cli import main
from edgemt.export.graphs import causal
from edgemt.export.graphs.graphset import Builder, Canonical, GraphSet
from edgemt.export.targets import PLAIN, Calibrated, target
from edgemt.export.targets.cache8 import to_cache8
from edgemt.export.targets.quantize import S8_PAIRED, Quantizer
from edgemt.runtimes import open_program
from edgemt.runtimes.protocol import Program, Tap, Want

torch.set_num_threads(1)

LENIENT = ["--max-bleu-drop", "200", "--max-new-critical", "1000"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learnt_by_heart(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module", params=["--int8", "--int4", "--fp32"])
def bytewise(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle whose cache is in bytes."""
    out = tmp_path_factory.mktemp("kv") / "bundle"
    assert main(["export", str(checkpoint), request.param, "--kv", "int8", *LENIENT, "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "bundle"
    assert main(["export", str(checkpoint), "--scheme", "static", *LENIENT, "-o", str(out)]) == 0
    return out


def test_no_weight_is_unpacked_when_it_runs(bundle: Path, tmp_path: Path) -> None:
    """Otherwise every step would unpack all weights, five times as slow."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(bundle / "step.onnx"), options)
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("MatMul", "FusedMatMul", "Gemm"):
            assert "DequantizeLinear" not in {made_by.get(name) for name in node.input}, node.name
    layers = [layer for layer in open_bundle(bundle).manifest.layers if layer["op"] == "MatMul"]
    counts = {
        kind: sum(node.op_type == kind for node in graph.node)
        for kind in ("MatMulIntegerToFloat", "MatMulNBits")
    }
    assert counts["MatMulIntegerToFloat"] > 0 and sum(counts.values()) == len(layers)


def program_of(
    canonical: Canonical,
    directory: Path,
    precision: str = "fp32",
    found: Calibrated = PLAIN,
    taps: list[str] | None = None,
    on_tap: Tap | None = None,
) -> Program:
    lowered = target("onnxruntime").lower(canonical, precision, found)
    directory.mkdir(exist_ok=True)
    manifest = write_graphs(directory, canonical, lowered, precision)
    return open_program(directory, manifest, taps={"step": taps} if taps else None, on_tap=on_tap)


TEXT = np.random.default_rng(0).integers(0, VOCABULARY, (1, 60)).astype(np.int32)


def logits(program: Program, widths: list[int], ids: np.ndarray = TEXT) -> np.ndarray:
    """[tokens, V] of a text that is cut into steps of these widths."""
    session = program.open(None, np.zeros(1, np.int32), ids.shape[1])
    ends = np.cumsum(widths)
    steps = [
        session.step(ids[:, end - width : end], np.array([width], np.int32), Want(logits=True)).logits
        for end, width in zip(ends, widths, strict=True)
    ]
    return np.concatenate([step[0] for step in steps if step is not None])


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Of the standard deviation of the logits."""
    return float(np.sqrt(np.square(found - expected).mean()) / expected.std())


@pytest.fixture(scope="module", params=CASES)
def canonical(request: pytest.FixtureRequest) -> Canonical:
    return causal.build(checkpoint_of(model_of(request.param)), 7, EOS, [])


def sampled(canonical: Canonical, directory: Path) -> Samples:
    samples = Samples()
    taps = [fold.tensor for fold in folds(canonical)]
    logits(program_of(canonical, directory, taps=taps, on_tap=samples), [40, *[1] * 20])
    return samples


def test_folding_outliers_away_changes_nothing(canonical: Canonical, tmp_path: Path) -> None:
    factors = find_factors(canonical, sampled(canonical, tmp_path / "taps").tensors)
    assert len(factors) == 12 and sum(bool((factor != 1).any()) for factor in factors.values()) > 6
    plain = logits(program_of(canonical, tmp_path / "plain"), [60])
    smoothed = logits(program_of(smooth(canonical, factors), tmp_path / "smooth"), [60])
    np.testing.assert_allclose(smoothed, plain, atol=1e-4 * max(1.0, float(plain.std())))


def static(canonical: Canonical, samples: Samples, by_rows: bool = False) -> Calibrated:
    ranges = {
        name: (min(0.0, float(sample.low.min())), max(0.0, float(sample.high.max())))
        for name, sample in samples.tensors.items()
    }
    rows = {f"layers.{i}.mlp.down_proj.matmul": "rows" for i in range(3)} if by_rows else {}
    return Calibrated(ranges, {"logits": "blocks", **rows})


def with_outliers(canonical: Canonical) -> Canonical:
    """Channels a hundred times as large as the others behind every norm, as large models have them."""
    factors = {}
    for fold in folds(canonical):
        factor = np.ones(len(fold.origin), np.float32)
        if "layernorm" in fold.tensor:
            factor[[3, 17]] = 1 / 100
        factors[fold.tensor] = factor
    return smooth(canonical, factors)


def test_outlier_channels_break_static_ranges_and_smoothing_repairs_them(
    canonical: Canonical, tmp_path: Path
) -> None:
    hard = with_outliers(canonical)
    exact = logits(program_of(hard, tmp_path / "fp32"), [60])
    samples = sampled(hard, tmp_path / "taps")
    plain = logits(program_of(hard, tmp_path / "plain", "int8-static", static(hard, samples)), [60])
    soft = smooth(hard, find_factors(hard, samples.tensors))
    found = static(soft, sampled(soft, tmp_path / "again"))
    smoothed = logits(program_of(soft, tmp_path / "smooth", "int8-static", found), [60])
    assert error(plain, exact) > 0.3 and error(smoothed, exact) < 0.2


@pytest.mark.parametrize("outputs", [64, 768])  # a scale a column inside the product, and behind it
def test_a_massive_token_leaves_the_others_alone_if_rows_are_scaled_one_by_one(
    outputs: int, tmp_path: Path
) -> None:
    """As the first token of a prompt is in front of down_proj: a thousand times the others."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(20, 1, 96)).astype(np.float32)
    x[0, 0, :2] = 3000, -800
    builder = Builder("step", {})
    builder.input("x", np.float32, ["width", "rows", 96])
    weight = draw.normal(size=(96, outputs)).astype(np.float32)
    bias = builder.weight("bias", draw.normal(size=outputs).astype(np.float32))
    product = builder.node("MatMul", ["x", builder.weight("w", weight)], "product")
    builder.node("Add", [product, bias], "y")
    builder.output("y", np.float32, ["width", "rows", outputs])
    graphs = GraphSet({"step": builder.model()}, builder.weights)
    exact = x @ weight + builder.weights["bias"]
    errors = []
    for by_rows in ((), ("product",)):
        lowered = Quantizer(graphs, S8_PAIRED, {"x": (-800.0, 3000.0)}, by_rows).run()
        lowered.write(tmp_path)
        found = onnxruntime.InferenceSession(str(tmp_path / "step.onnx")).run(["y"], {"x": x})[0]
        errors.append([error(found[row], exact[row]) for row in range(20)])
    static, rows = np.array(errors)
    assert (static[1:] > 0.9).all() and (rows[1:] < 0.03).all() and rows[0] < 0.03


def test_a_cache_of_bytes_gives_the_same_however_a_text_is_cut(canonical: Canonical, tmp_path: Path) -> None:
    ranges = CacheRanges(canonical)
    exact = logits(program_of(canonical, tmp_path / "taps", taps=ranges.tensors, on_tap=ranges), [60])
    bytewise = to_cache8(canonical, ranges.ranges)
    assert {spec.dtype for spec in bytewise.states} == {"int8"}
    program = program_of(bytewise, tmp_path / "bytes")
    whole, cut = logits(program, [60]), logits(program, [20, 1, 30, *[1] * 9])
    assert 0 < error(whole, exact) < 0.03
    assert error(cut, whole) < 1e-3  # codes that are nearly a tie may fall the other way


def lines_known(directory: Path) -> tuple[int, int]:
    """Of the lines that it was taught: how many it says, and how many there are."""
    translator = edgemt.load(directory)
    zh, en = clinical_pairs(12).texts
    said = translator.translate_many(zh, "zh", "en")
    return sum(a == b for a, b in zip(said, en, strict=True)), len(en)


def test_it_says_what_it_has_learnt(bundle: Path) -> None:
    right, lines = lines_known(bundle)
    assert right >= lines - 1
    report = json.loads((bundle / "report.json").read_text())
    quant = json.loads((bundle / "quant.json").read_text())
    layers = [layer for layer in open_bundle(bundle).manifest.layers if layer["op"] == "MatMul"]
    told = Counter(layer["activations"] for layer in layers)
    counted = {kind: count for kind, count in report["products"].items() if kind in told}
    assert told == counted and told["static"] > told["rows"]
    assert Counter(quant["schemes"].values()) == Counter(told) - Counter(static=told["static"])


def test_blocks_of_8_bits_stand_beside_static_ranges(checkpoint: Path, tmp_path: Path) -> None:
    assert main(["export", str(checkpoint), "--int8", *LENIENT, "-o", str(tmp_path / "auto")]) == 0
    report = json.loads((tmp_path / "auto" / "report.json").read_text())
    assert set(report["variants"]) == {"fp32", "int8-static", "int8-blocks"}
    assert report["chosen"] == open_bundle(tmp_path / "auto").manifest.precision != "fp32"
    alone = shutil.copytree(checkpoint, tmp_path / "alone")
    (alone / "calibration.tsv").unlink()
    assert main(["export", str(alone), "--scheme", "blocks", *LENIENT, "-o", str(tmp_path / "blocks")]) == 0
    manifest = open_bundle(tmp_path / "blocks").manifest
    assert manifest.precision == "int8-blocks"
    assert {layer["precision"] for layer in manifest.layers if layer["op"] == "MatMul"} == {"int8"}
    right, lines = lines_known(tmp_path / "blocks")
    assert right >= lines - 1


def test_it_says_it_from_a_cache_of_bytes(bytewise: Path) -> None:
    manifest = open_bundle(bytewise).manifest
    assert {spec.dtype for spec in manifest.states} == {"int8"}
    right, lines = lines_known(bytewise)
    assert right >= lines - (2 if manifest.precision == "int4" else 1)
    cache = json.loads((bytewise / "report.json").read_text())["cache"]
    assert cache["bytes_a_token_fp32"] == 4 * cache["bytes_a_token"] == 4 * 2 * 2 * 2 * 16


def test_a_cache_of_bytes_is_for_some_precisions(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(checkpoint), "--fp16", "--kv", "int8", "-o", str(tmp_path / "out")]) == 2
    assert "--kv int8 is for decoder-only models" in capsys.readouterr().err
