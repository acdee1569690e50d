"""benchmarks/causal_projection.py: published figures of language models on a Pi 5 lie in its ranges."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.causal_projection import Verified, Weights, one_pass, products, sentence
from edgemt.bench import device_model as device

LOOP, TILES = (2.2, 3.5), (4.0, 6.0)  # instructions for 16 multiplications: one row; llamafile's tiles
# Bytes of the files and multiplications a token, as in edgemt/data/pi5.json, which has the addresses.
LLAMA_3B = Weights("Llama 3.2 3B Q4_K_M", 2.02e9, 3.2e9, LOOP, TILES)
TINY_1B = Weights("TinyLlama 1.1B Q8_0", 1.17e9, 0.97e9, LOOP, TILES)
QWEN_1B = Weights("Qwen2.5 1.5B Q4_K_M", 0.986e9, 1.54e9, LOOP, TILES)


@pytest.fixture(scope="module")
def draws() -> device.Draws:
    return device.draw(device.read_device("pi5"))


@pytest.mark.parametrize(
    ("weights", "rows", "threads", "published"),
    [
        (LLAMA_3B, 1, 4, 4.5),
        (LLAMA_3B, 1, 4, 5.5),
        (TINY_1B, 1, 4, 9.0),
        (TINY_1B, 128, 4, 45.0),
        (QWEN_1B, 1, 4, 10.34),
        (QWEN_1B, 1, 2, 12.2),
    ],
)
def test_published_tokens_a_second_lie_in_the_range(draws, weights, rows, threads, published) -> None:
    low, middle, high = device.bounds(rows / one_pass(draws, weights, rows, threads))
    assert low <= published * 1.01 and published * 0.99 <= high
    assert 0.6 < middle / published < 1.7


def test_decoding_is_bound_by_reading_and_prefill_by_arithmetic(draws) -> None:
    half = Weights("half the bytes", QWEN_1B.bytes / 2, QWEN_1B.elements, LOOP, TILES)
    assert np.median(one_pass(draws, half, 1, 4)) < 0.7 * np.median(one_pass(draws, QWEN_1B, 1, 4))
    assert np.allclose(one_pass(draws, half, 256, 4), one_pass(draws, QWEN_1B, 256, 4))


def test_what_is_cached_or_accepted_is_saved_and_a_useless_draft_costs(draws) -> None:
    draft = Weights("draft", QWEN_1B.bytes / 3, QWEN_1B.elements / 3, LOOP, TILES)

    def middle(prompt: int, verified: Verified | None = None) -> float:
        return float(np.median(sentence(draws, QWEN_1B, prompt, 25, 4, verified)))

    plain = middle(64)
    assert middle(26) < plain
    assert middle(64, Verified(4, 2.5)) < plain
    assert middle(64, Verified(4, 1.0, draft)) > plain


def test_the_products_of_a_graph_are_found_whatever_their_type() -> None:
    """A product in FP32, one in 8 bits behind DequantizeLinear, one in blocks, and one without weights."""
    tensors = [
        helper.make_tensor("a", TensorProto.FLOAT, [64, 96], np.zeros(64 * 96, np.float32)),
        helper.make_tensor("b", TensorProto.INT8, [96, 32], np.zeros(96 * 32, np.int8)),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("c", TensorProto.UINT8, [64, 1, 16], np.zeros(64 * 16, np.uint8)),
        helper.make_tensor("c.scales", TensorProto.FLOAT, [64], np.zeros(64, np.float32)),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["y"]),
        helper.make_node("DequantizeLinear", ["b", "scale"], ["b.float"]),
        helper.make_node("MatMul", ["y", "b.float"], ["z"]),
        helper.make_node(
            "MatMulNBits",
            ["z", "c", "c.scales"],
            ["w"],
            "",
            None,
            "com.microsoft",
            K=32,
            N=64,
            bits=4,
            block_size=32,
        ),
        helper.make_node("MatMul", ["w", "w"], ["attention"]),
    ]
    model = onnx.helper.make_model(helper.make_graph(nodes, "step", [], [], tensors))
    assert list(products(model)) == [
        (64 * 96, 64 * 96 * 4),
        (96 * 32, 96 * 32),
        (64 * 32, 64 * 32 / 2 + 64 * 4),
    ]
