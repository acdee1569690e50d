"""Collecting ranges from real decoding of a small real model, and the file they are kept in."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from toy import EOS, PAD, Toy

from edgemt.bundle import open_bundle
from edgemt.calibration.collect import calibration_tensors, collect, quantisable_inputs
from edgemt.calibration.quantspec import QuantSpec, affine
from edgemt.calibration.sensitivity import worst_layers
from edgemt.errors import EdgemtError, UsageError
from edgemt.family import Request
from edgemt.tokenizer import Tokenizer
from edgemt.translator import load

SENTENCES = [
    ("zh", "en", "我对青霉素过敏。"),
    ("en", "zh", "Take one tablet twice a day after meals."),
    ("zh", "en", "昨晚吐了三次。"),
    ("en", "zh", "No."),
    ("zh", "en", ""),
]
TENSORS = {"encoder": ["encoder.out"], "step": ["decoder.0.out", "decoder.1.out", "logits"]}


@pytest.fixture(scope="module")
def spec(toy_bundle: Path) -> QuantSpec:
    return collect(toy_bundle, open_bundle(toy_bundle).manifest, TENSORS, SENTENCES)


def toy_of(toy_bundle: Path) -> Toy:
    """The model in the bundle again, to compute with it in numpy."""
    model = open_bundle(toy_bundle).manifest.model
    return Toy(vocab=model.vocab_size, suppress=tuple(model.suppress), eos_bonus=4.0)


def test_ranges_are_those_of_decoding_without_cache_or_batch(toy_bundle: Path, spec: QuantSpec) -> None:
    translator, toy = load(toy_bundle), toy_of(toy_bundle)
    model, steps, seen = translator.bundle.manifest.model, 0, []
    for source_lang, target_lang, text in SENTENCES:
        direction = f"{source_lang}-{target_lang}"
        ids = translator.tokenizer.encode(text)
        options = dataclasses.replace(translator.options, beam=1)
        request = Request(text, source_lang, target_lang)
        (found,) = translator.family.generate(translator.program, [request], options)
        decoded = [PAD, *found.tokens][: len(found.tokens) + found.finished]
        seen.append(toy.logits([*model.source_prefix[direction], *ids, EOS], decoded))
        steps += len(decoded)
    logits = np.concatenate(seen)
    assert spec.activations["logits"] == pytest.approx((logits.min(), logits.max()), abs=1e-4)
    assert (spec.steps, spec.sentences) == (steps, len(SENTENCES))
    assert spec.roles == {"encoder.out": "encoder"} | dict.fromkeys(TENSORS["step"], "step")


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_the_order_of_the_sentences_does_not_matter(toy_bundle: Path, observer: str) -> None:
    manifest = open_bundle(toy_bundle).manifest
    forth, back = (
        collect(toy_bundle, manifest, TENSORS, sentences, observer=observer)
        for sentences in (SENTENCES, SENTENCES[::-1])
    )
    assert forth.activations == back.activations
    assert forth.sqnr_db == back.sqnr_db
    assert forth.sentences_sha256 != back.sentences_sha256
    assert all(ratio is not None and ratio > 30 for ratio in forth.sqnr_db.values())


def test_a_weight_that_is_not_finite_names_the_tensor(toy_bundle: Path, tmp_path: Path) -> None:
    toy = toy_of(toy_bundle)
    toy.weights["decoder.0.up"] = toy.weights["decoder.0.up"] * np.float32(np.nan)
    broken = tmp_path / "broken"
    shutil.copytree(toy_bundle, broken)
    toy.write(broken)
    with pytest.raises(EdgemtError, match=r"decoder\.0\.out .*not finite"):
        collect(broken, open_bundle(toy_bundle).manifest, {"step": ["decoder.0.out"]}, SENTENCES)


def test_what_cannot_be_asked_for(toy_bundle: Path) -> None:
    manifest = open_bundle(toy_bundle).manifest
    with pytest.raises(UsageError, match="no sentences"):
        collect(toy_bundle, manifest, TENSORS, [])
    with pytest.raises(UsageError, match="entropy"):
        collect(toy_bundle, manifest, TENSORS, SENTENCES, observer="entropy")
    with pytest.raises(EdgemtError, match="nowhere"):
        collect(toy_bundle, manifest, {"step": ["nowhere"]}, SENTENCES)
    with pytest.raises(EdgemtError, match="same name"):
        collect(toy_bundle, manifest, {"encoder": ["x"], "step": ["x"]}, SENTENCES)


def test_inputs_of_constant_products_are_found_once(tmp_path: Path) -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Transpose", ["table"], ["head"]),  # a tied embedding
        make("MatMul", ["x", "wq"], ["q"]),
        make("MatMul", ["x", "wk"], ["k"]),
        make("MatMul", ["q", "k"], ["attention"]),
        make("Gemm", ["attention", "wo", "bias"], ["out"]),
        make("MatMul", ["out", "head"], ["logits"]),
        make("Add", ["logits", "bias"], ["biased"]),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), name)
        for name in ("table", "wq", "wk", "wo", "bias")
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, [4, 4])], [value("biased", 1, [4, 4])], weights)
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph), str(path))
    assert quantisable_inputs(path) == ["x", "attention", "out"]
    assert quantisable_inputs(path, products=True) == ["x", "q", "k", "attention", "out"]


def test_cross_attention_is_watched_at_the_encoder(toy_bundle: Path) -> None:
    manifest = open_bundle(toy_bundle).manifest
    plain, products = (calibration_tensors(toy_bundle, manifest, products) for products in (False, True))
    assert "encoder.out" in plain["encoder"] and "cross_key.0" not in plain["encoder"]
    assert {"cross_key.0", "cross_value.1"} <= set(products["encoder"])
    assert not any(name.startswith("cross_") for name in products["step"])
    assert set(plain["step"]) < set(products["step"])


def test_the_file_comes_back_as_it_was(spec: QuantSpec, tmp_path: Path) -> None:
    path = tmp_path / "quant.json"
    spec.save(path)
    assert QuantSpec.load(path) == spec
    assert [entry.name for entry in tmp_path.iterdir()] == ["quant.json"]
    entry = json.loads(path.read_text())["activations"]["logits"]
    assert (entry["low"], entry["high"]) == spec.activations["logits"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not an edgemt calibration result"),
        ({"format_version": "2.0"}, "upgrade"),
        ({"activations": None}, "misnames"),
        ({"activations": {"x": {"low": 0}}}, "misnames"),
    ],
)
def test_a_file_of_another_kind_is_refused(
    spec: QuantSpec, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "quant.json"
    path.write_text(json.dumps(spec.to_json() | change))
    with pytest.raises(EdgemtError, match=message):
        QuantSpec.load(path)


def test_a_missing_damaged_or_unwritable_file_is_one_sentence(spec: QuantSpec, tmp_path: Path) -> None:
    with pytest.raises(EdgemtError, match="cannot be read"):
        QuantSpec.load(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"format": "edge')
    with pytest.raises(EdgemtError, match="damaged"):
        QuantSpec.load(tmp_path / "half.json")
    with pytest.raises(EdgemtError, match="cannot be written"):
        spec.save(tmp_path / "nowhere" / "quant.json")


def test_the_worst_tensors_come_first(spec: QuantSpec) -> None:
    worst = worst_layers(spec, spec.activations, 3)
    assert [entry.sqnr_db for entry in worst] == sorted(filter(None, spec.sqnr_db.values()))[:3]
    assert all(spec.roles[entry.tensor] == entry.role for entry in worst)
    silent = dataclasses.replace(spec, sqnr_db=dict.fromkeys(spec.sqnr_db))
    assert worst_layers(silent, silent.activations) == []


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 5.0), (-2.0, 0.0), (-1e-3, 1e4)])
def test_zero_is_a_level_of_the_quantiser(low: float, high: float) -> None:
    scale, zero = affine(low, high)
    assert 0 <= zero <= 255
    assert low - scale <= -zero * scale <= low + scale
    assert high - scale <= (255 - zero) * scale <= high + scale
    assert affine(0.0, 0.0) == (1.0, 0)


def test_sources_are_cut_at_the_model_s_limit(toy_bundle: Path) -> None:
    text = "疼。" * 300
    assert len(Tokenizer(toy_bundle, open_bundle(toy_bundle).manifest.tokenizer).encode(text)) > 64
    collect(toy_bundle, open_bundle(toy_bundle).manifest, TENSORS, [("zh", "en", text)])
