"""Weights in 4 bits that make up for their errors, over real prompts and answers."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from causal_bundles import write_bundle
from causal_fixtures import clinical_pairs, learnt_by_heart
from causal_models import CASES, EOS, VOCABULARY, checkpoint_of, model_of

import edgemt
from edgemt.bundle import open_bundle
from edgemt.calibration.gptq import Moments, compensated, output_error, second_moments
from edgemt.calibration.layerwise import Layerwise
from edgemt.calibration.mixed import Sensitivity, choose, sensitivities
from edgemt.calibration.rounding import compensate, shares
from edgemt.cli import main
from edgemt.export.graphs import causal
from edgemt.export.graphs.graphset import Lazy, lazy
from edgemt.export.targets.weight_only import SHORTLIST, Blocks, nearest, unpack

torch.set_num_threads(1)


def correlated(tokens: int, columns: int, seed: int = 0) -> np.ndarray:
    """Activations as they are in models: a few directions and a few columns carry most of them."""
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(tokens, columns // 4)) @ draw.normal(size=(columns // 4, columns))
    return ((mixed + draw.normal(size=mixed.shape)) * np.exp(draw.normal(size=columns))).astype(np.float32)


@pytest.mark.parametrize("columns", [128, 100], ids=["whole blocks", "a block half full"])
def test_outputs_are_nearer_than_those_of_the_nearest_weights(columns: int) -> None:
    x, seen = correlated(700, columns), 500
    weight = np.random.default_rng(1).normal(size=(48, columns)).astype(np.float32)
    found = compensated(weight, Moments(second_moments([x[:200], x[200:seen]]), 32), 4)
    ours = unpack(found, 4, columns)
    plain = unpack(nearest("", lambda: weight, 4, 32), 4, columns)
    for of in (x[:seen], x[seen:]):  # and on tokens that it has not seen
        outputs = of @ weight.T
        error = float(np.linalg.norm(of @ ours.T - outputs) / np.linalg.norm(outputs))
        assert output_error(ours, weight, of) == pytest.approx(error, rel=1e-3)
        assert error < 0.7 * output_error(plain, weight, of)


@pytest.mark.parametrize("kind", CASES)
def test_layer_by_layer_is_the_whole_model(kind: str) -> None:
    model = model_of(kind)
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, VOCABULARY, length).tolist() for length in (9, 1, 30)]
    layers = Layerwise(causal.build(checkpoint_of(model), 7, EOS, []), texts)
    layers.run()
    for text, logits in zip(texts, layers.logits(), strict=True):
        with torch.inference_mode():
            expected = model(torch.tensor([text])).logits[0].numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1.0, float(expected.std())))


def test_the_weights_of_one_piece_are_in_memory_and_each_is_read_once() -> None:
    graphs = causal.build(checkpoint_of(model_of("hunyuan_v1_dense")), 7, EOS, [])
    large = {name: weight for name, weight in graphs.weights.items() if isinstance(weight, Lazy)}
    reads: Counter[str] = Counter()
    alive: list[weakref.ref[np.ndarray]] = []

    def watched(name: str) -> np.ndarray:
        reads[name] += 1
        found = np.asarray(large[name])
        alive.append(weakref.ref(found))
        assert sum(ref() is not None for ref in alive) <= 2
        return found

    for name, weight in large.items():
        graphs.weights[name] = lazy(weight.shape, weight.dtype, partial(watched, name))
    compensate(graphs, [[3, 5, 8, 13, 21], [3, 5, 9]], {}, 32)
    assert reads == dict.fromkeys(large, 1)


def test_a_shared_beginning_is_computed_once_and_counts_as_often_as_it_is_there() -> None:
    found = shares([[1, 2, 3, 4], [1, 2, 5], [1, 2], [2]])
    assert [counts.tolist() for counts in found] == [[3, 3, 1, 1], [0, 0, 1], [0, 0], [1]]


@pytest.mark.parametrize("kind", CASES)
def test_a_product_is_weighed_by_what_its_branch_adds(kind: str) -> None:
    graphs = causal.build(checkpoint_of(model_of(kind)), 7, EOS, [])
    texts = [[3, 5, 8, 13, 21], [3, 5, 9]]
    before = {each.product: each.error for each in sensitivities(graphs, texts, 32)}
    assert len(before) == 4 * 3 and all(0 < error < 1 for error in before.values())
    small = "layers.1.mlp.down_proj"
    graphs.weights[f"{small}.weight"] = np.asarray(graphs.weights[f"{small}.weight"]) / 1000
    after = {each.product: each.error for each in sensitivities(graphs, texts, 32)}
    for part in ("gate_up_proj", "down_proj"):  # the same in themselves, and next to nothing in the stream
        name = f"layers.1.mlp.{part}.matmul"
        assert after[name] < before[name] / 100
    assert after["layers.0.mlp.down_proj.matmul"] == before["layers.0.mlp.down_proj.matmul"]


def test_the_budget_goes_to_the_worst_for_their_size() -> None:
    found = [Sensitivity("a", 100, 0.1), Sensitivity("b", 100, 0.3), Sensitivity("c", 200, 0.35)]
    assert choose(found, 4) == {}
    assert choose(found, 5) == {"b": 8}  # 100 of 400 weights
    assert choose(found, 7) == {"b": 8, "c": 8}
    assert choose(found, 8) == {"a": 8, "b": 8, "c": 8}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HunYuanDenseV1 that has learnt twelve lines by heart, with them as sentences for everything."""
    found = learnt_by_heart(tmp_path_factory.mktemp("causal"))
    (found / "calibration.tsv").rename(found.parent / "sentences.tsv")  # to be given or not
    return found


LENIENT = ["--max-bleu-drop", "200", "--max-new-critical", "1000"]


def test_an_export_rounds_over_the_sentences_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    out, rows = tmp_path / "bundle", checkpoint.parent / "sentences.tsv"
    given = ["--int4", "--int4-budget", "4.5", "--calibration", str(rows), *LENIENT]
    assert main(["export", str(checkpoint), *given, "-o", str(out)]) == 0
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    products = report["rounding"]["products"]
    assert report["rounding"]["texts"] == 24 and len(products) == 4 * 2
    assert all(product["error"] < product["nearest"] for product in products)
    assert report["variants"]["int4"]["gate"]["passed"]
    manifest = open_bundle(out).manifest
    assert manifest.provenance["rounding"]["method"] == "gptq"
    layers = {layer["name"]: layer for layer in manifest.layers}
    weights = {each["product"]: layers[each["product"]]["bytes"] * 8 / each["bits"] for each in products}
    assert {each["product"]: each["bits"] for each in products} == {
        name: int(layers[name]["precision"].removeprefix("int")) for name in weights
    }
    assert layers["logits"]["precision"] == "int8"
    eight = sum(weights[each["product"]] for each in products if each["bits"] == 8)
    assert 0 < eight <= sum(weights.values()) / 8


def test_without_sentences_weights_are_rounded_to_the_nearest_and_it_says_so(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert main(["export", str(checkpoint), "--int4", "--rounding", "gptq", "-o", str(out)]) == 2
    assert "there are no sentences to round over" in capsys.readouterr().err
    assert main(["export", str(checkpoint), "--int4", *LENIENT, "-o", str(out)]) == 0
    assert "rounded to the nearest (there are no sentences" in capsys.readouterr().err
    assert open_bundle(out).manifest.provenance["rounding"]["method"] == "nearest"


def test_blocks_are_as_large_as_asked_where_whole_ones_fill_a_row(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert main(["export", str(checkpoint), "--int4", "--int4-block", "128", *LENIENT, "-o", str(out)]) == 0
    nodes = onnx.load(str(out / "step.onnx"), load_external_data=False).graph.node
    attributes = [
        {each.name: each.i for each in node.attribute} for node in nodes if node.op_type == "MatMulNBits"
    ]
    sizes = {(each["K"], each["block_size"]) for each in attributes}
    assert all(columns % size == 0 or size == 32 for columns, size in sizes)
    assert max(size for _, size in sizes) > 32
    assert edgemt.load(out).translate(clinical_pairs(1).texts[0][0], source_lang="zh").strip()


def test_the_best_logits_come_from_8_bits(tmp_path: Path) -> None:
    """With 4-bit weights in large blocks: from all rows of 4 bits, then from some of 8."""
    bundle = write_bundle(tmp_path / "bundle", precision="int4", block=128, hidden_size=128)
    model = onnx.load(str(bundle / "step.onnx"))
    (head,) = (node for node in model.graph.node if "logits.coarse" in node.output)
    weights = {init.name: onnx.numpy_helper.to_array(init) for init in model.graph.initializer}
    rows = head.input[1].removesuffix(".coarse_blocks")
    exact, rough = (
        unpack(Blocks(weights[f"{name}_blocks"], weights[f"{name}_scales"]), bits, 128)
        for name, bits in ((rows, 8), (f"{rows}.coarse", 4))
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 128)).astype(np.float32)
    for name in (head.input[0], "logits.coarse"):
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    part = onnx.utils.Extractor(model).extract_model([head.input[0]], ["logits", "logits.coarse"])
    logits, coarse = onnxruntime.InferenceSession(part.SerializeToString()).run(None, {head.input[0]: x})
    np.testing.assert_allclose(coarse, x @ rough.T, atol=0.05 * np.std(coarse))  # x in 8 bits
    best = np.argpartition(coarse, -SHORTLIST)[..., -SHORTLIST:]
    expected = coarse.copy()
    np.put_along_axis(expected, best, np.take_along_axis(x @ exact.T, best, -1), -1)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert (logits != coarse).sum() == SHORTLIST * 6
