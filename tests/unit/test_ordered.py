"""Attention's softmax written out, so that what is barred behind a row does not move its last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from causal_models import CASES, EOS, VOCABULARY, checkpoint_of, model_of

from edgemt.export.graphs import causal
from edgemt.export.graphs.graphset import GraphSet
from edgemt.export.targets.ordered import order_sums

PAST, WIDTH = 5, 3


def logits(graphs: GraphSet, directory: Path) -> np.ndarray:
    """Of two rows behind five slots, the first of which is barred in one row."""
    directory.mkdir()
    graphs.write(directory)
    session = onnxruntime.InferenceSession(str(directory / "step.onnx"))
    draw = np.random.default_rng(0)
    bias = np.zeros((2, 1, WIDTH, PAST + WIDTH), np.float32)
    bias[..., PAST:] = np.triu(np.full((WIDTH, WIDTH), -10000, np.float32), 1)
    bias[1, ..., 0] = -10000
    given = {
        "input_ids": draw.integers(0, VOCABULARY, (2, WIDTH)).astype(np.int32),
        "position_ids": np.tile(np.arange(PAST, PAST + WIDTH, dtype=np.int32), (2, 1)),
        "self_bias": bias,
        "wanted": np.arange(2 * WIDTH, dtype=np.int32).reshape(WIDTH, 2).T.copy(),
    }
    for each in session.get_inputs():
        if each.name.startswith("past_"):
            given[each.name] = draw.normal(size=(PAST, 2, *each.shape[2:])).astype(np.float32)
    return np.asarray(session.run(["logits"], given)[0])


@pytest.mark.parametrize("kind", CASES)
def test_it_is_the_same_softmax(kind: str, tmp_path: Path) -> None:
    graphs = causal.build(checkpoint_of(model_of(kind)), 1, EOS, [])
    ordered = order_sums(graphs)
    assert "Softmax" in {node.op_type for node in graphs.graphs["step"].graph.node}
    assert "Softmax" not in {node.op_type for node in ordered.graphs["step"].graph.node}
    plain = logits(graphs, tmp_path / "plain")
    np.testing.assert_allclose(logits(ordered, tmp_path / "ordered"), plain, atol=1e-5 * plain.std())
