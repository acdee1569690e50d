"""The canonical graphs compute what torch's MarianMTModel computes, and are what every target can take."""

from __future__ import annotations

import json
from pathlib import Path

import marian
import numpy as np
import onnx
import pytest
import torch
from transformers import MarianMTModel

from edgemt.bundle import open_bundle
from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.read import read_checkpoint
from edgemt.export.parity import check_parity
from edgemt.runtimes.protocol import Want
from edgemt.tokenizer import Tokenizer

KINDS = {
    "student": (marian.student, {}),
    "opus": (marian.opus, {}),
    "gelu": (marian.student, {"activation_function": "gelu", "decoder_layers": 2, "scale_embedding": False}),
    "split": (marian.opus, {"share_encoder_decoder_embeddings": False, "decoder_attention_heads": 2}),
    "untied": (marian.student, {"tie_word_embeddings": False}),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and its FP32 bundle."""
    make, changes = KINDS[request.param]
    checkpoint = make(tmp_path_factory.mktemp(request.param) / "checkpoint", **changes)
    return checkpoint, marian.bundle(checkpoint, checkpoint.parent / "bundle")


def test_decodes_as_torch_does(kind: tuple[Path, Path]) -> None:
    checkpoint, directory = kind
    opened = open_bundle(directory)
    model, tokenizer = opened.manifest.model, Tokenizer.of(opened)
    sources = [[*tokenizer.encode(zh), model.eos_id] for zh, _ in marian.sentences()[:10]]
    parity = check_parity(read_checkpoint(checkpoint), marian.program(directory), model, sources, steps=20)
    assert parity.passed and parity.tokens >= 100
    assert parity.max_abs_error < 1e-4 * parity.logit_std


@pytest.mark.parametrize("widths", [[1] * 6, [6], [2, 3, 1]], ids=str)
def test_any_cut_of_the_target_gives_the_same_logits(kind: tuple[Path, Path], widths: list[int]) -> None:
    checkpoint, directory = kind
    reference = MarianMTModel.from_pretrained(checkpoint, attn_implementation="eager").eval()
    config, draw = reference.config, np.random.default_rng(0)
    lengths = np.array([9, 5, 7], np.int32)
    source = draw.integers(5, 300, (3, 9)).astype(np.int32)
    mask = np.arange(9) < lengths[:, None]
    source[~mask] = config.pad_token_id
    target_ids = draw.integers(5, 300, (3, 6)).astype(np.int32)
    with torch.inference_mode():
        answer = reference(
            input_ids=torch.from_numpy(source).long(),
            attention_mask=torch.from_numpy(mask).long(),
            decoder_input_ids=torch.from_numpy(target_ids).long(),
            output_attentions=True,
        )
    ran = marian.program(directory)
    session = ran.open(ran.encode(source, lengths), np.arange(3, dtype=np.int32), 6)
    ends = np.cumsum(widths)
    steps = [
        session.step(
            target_ids[:, end - width : end],
            np.full(3, width, np.int32),
            Want(logits=True, alignment=True),
        )
        for end, width in zip(ends, widths, strict=True)
    ]
    logits = np.concatenate([step.logits for step in steps], axis=1)
    alignment = np.concatenate([step.alignment for step in steps], axis=1)
    np.testing.assert_allclose(logits, answer.logits.numpy(), atol=1e-4 * float(answer.logits.std()))
    expected = answer.cross_attentions[-1].mean(dim=1).numpy()
    np.testing.assert_allclose(alignment, expected, atol=1e-5)


def test_graphs_are_plain_and_named_by_module(tmp_path: Path) -> None:
    graphs = marian.canonical(marian.student(tmp_path / "checkpoint", decoder_layers=2))
    plain = "Add Concat Gather LayerNormalization MatMul Mul ReduceMean Relu Reshape Softmax Split Transpose"
    for model in graphs.graphs.values():
        assert {node.op_type for node in model.graph.node} <= set(plain.split())
        assert not any(node.domain for node in model.graph.node)
        assert all(value.type.tensor_type.elem_type in (1, 6) for value in model.graph.input)
    names = [node.name for node in graphs.graphs["step"].graph.node]
    assert len(set(names)) == len(names)
    assert {"decoder.layers.1.encoder_attn.out_proj", "decoder.layers.0.fc1", "logits"} <= set(names)
    files = graphs.write(tmp_path)
    for file in files.values():
        onnx.checker.check_model(str(tmp_path / file), full_check=True)


def test_tied_embedding_is_stored_once(tmp_path: Path) -> None:
    graphs = marian.canonical(marian.student(tmp_path / "checkpoint"))
    tables = [name for name, array in graphs.weights.items() if array.shape == (703, 32)]
    assert tables == ["shared.weight"]


def test_wrong_graphs_are_found_out(tmp_path: Path) -> None:
    checkpoint = marian.student(tmp_path / "checkpoint")
    directory = marian.bundle(marian.student(tmp_path / "other", init_std=0.2), tmp_path / "bundle")
    model = open_bundle(directory).manifest.model
    with pytest.raises(EdgemtError, match="do not compute what torch computes"):
        check_parity(
            read_checkpoint(checkpoint),
            marian.program(directory),
            model,
            [[4, 50, 60, 0], [3, 70, 0]],
            steps=4,
        )


@pytest.mark.parametrize("changes", [{"normalize_before": True}, {"activation_function": "tanh"}])
def test_what_marian_is_not_is_refused(tmp_path: Path, changes: dict) -> None:
    checkpoint = marian.student(tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(EdgemtError, match="Marian"):
        marian.canonical(checkpoint)
