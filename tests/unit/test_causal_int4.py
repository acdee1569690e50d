"""Weights in 4 bits that make up for their errors, over real prompts and answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from causal_fixtures import causal_config, clinical_pairs, write_causal_data
from causal_models import CASES, EOS, VOCABULARY, checkpoint_of, model_of

from edgemt.bundle import open_bundle
from edgemt.calibration.gptq import Moments, compensated, second_moments
from edgemt.calibration.layerwise import Layerwise
from edgemt.cli import main
from edgemt.export.graphs import causal
from edgemt.export.targets.weight_only import nearest, unpack
from edgemt.training.loop import Run

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

    def error(rounded: np.ndarray, of: np.ndarray) -> float:
        return float(np.linalg.norm(of @ (rounded - weight).T) / np.linalg.norm(of @ weight.T))

    ours = unpack(found.blocks, 4, columns)
    plain = unpack(nearest("", lambda: weight, 4, 32), 4, columns)
    for of in (x[:seen], x[seen:]):  # and on tokens that it has not seen
        assert error(ours, of) < 0.7 * error(plain, of)
    # What it says of itself is what a product gives, but for the damping.
    assert found.error == pytest.approx(error(ours, x[:seen]), rel=0.1)
    assert found.nearest == pytest.approx(error(plain, x[:seen]), rel=0.1)


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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HunYuanDenseV1 that has learnt twelve lines by heart, with them as sentences for everything."""
    directory = tmp_path_factory.mktemp("causal")
    config = causal_config(
        160,
        shape={"prompts": {"terminology": 0.0, "context": 0.0, "formatted": 0.0}},
        optimizer={"rate": 3e-3, "weight_decay": 0.0},
        schedule={"steps": 160, "warmup": 20, "cooldown": 40},
        ema_decay=0.0,
    )
    run = Run(config, write_causal_data(directory / "data", 12, 900), directory / "run")
    run.train()
    run.write_checkpoint(directory / "checkpoint")
    zh, en = clinical_pairs(12).texts
    rows = [f"zh\ten\t{a}\t{b}\nen\tzh\t{b}\t{a}" for a, b in zip(zh, en, strict=True)]
    lines = "\n".join(["source_lang\ttarget_lang\tsource\ttarget", *rows]) + "\n"
    (directory / "checkpoint" / "heldout.tsv").write_text(lines, encoding="utf-8")
    (directory / "sentences.tsv").write_text(lines, encoding="utf-8")
    return directory / "checkpoint"


LENIENT = ["--max-bleu-drop", "200", "--max-new-critical", "1000"]


def test_an_export_rounds_over_the_sentences_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    out, rows = tmp_path / "bundle", checkpoint.parent / "sentences.tsv"
    assert (
        main(["export", str(checkpoint), "--int4", "--calibration", str(rows), *LENIENT, "-o", str(out)]) == 0
    )
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    products = report["rounding"]["products"]
    assert report["rounding"]["texts"] == 24 and len(products) == 4 * 2
    assert all(product["error"] < product["nearest"] for product in products)
    assert report["variants"]["int4"]["gate"]["passed"]
    manifest = open_bundle(out).manifest
    assert manifest.provenance["rounding"]["method"] == "gptq"


def test_without_sentences_weights_are_rounded_to_the_nearest_and_it_says_so(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert main(["export", str(checkpoint), "--int4", "--rounding", "gptq", "-o", str(out)]) == 2
    assert "there are no sentences to round over" in capsys.readouterr().err
    assert main(["export", str(checkpoint), "--int4", *LENIENT, "-o", str(out)]) == 0
    assert "rounded to the nearest (there are no sentences" in capsys.readouterr().err
    assert open_bundle(out).manifest.provenance["rounding"]["method"] == "nearest"
