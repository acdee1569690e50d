"""The canonical encoder and decoder step of a Marian transformer.

Written node by node, which gives stable names and the fewest nodes (89 for a step of two layers, where
torch's exporter made 190): Q|K|V is one product, the cross-attention keys and values of all decoder
layers are one product at the end of the encoder, the scaling of the queries is in their weights. Inside a
graph the layout is [length, rows, d]: keys and values are then cached as they come, and attention needs
no transposition that a runtime cannot fold into its matrix product.

Tensors are named after the modules of the checkpoint, without the leading `model.`; `x.matmul` is a
product before its bias, `x` the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgemt.export.graphs.graphset import Array, Builder
from edgemt.runtimes.protocol import StateSpec

EPSILON = 1e-5  # torch.nn.LayerNorm's default


def _gelu(b: Builder, x: str, name: str) -> str:
    half, one = (
        b.weight("const.half", np.float32(0.5).reshape(1)),
        b.weight("const.one", np.float32(1).reshape(1)),
    )
    root = b.weight("const.sqrt_half", np.float32(math.sqrt(0.5)).reshape(1))
    erf = b.node("Erf", [b.node("Mul", [x, root], f"{name}.scaled")], f"{name}.erf")
    gate = b.node("Mul", [b.node("Add", [erf, one], f"{name}.shifted"), half], f"{name}.gate")
    return b.node("Mul", [x, gate], name)


def _swish(b: Builder, x: str, name: str) -> str:
    return b.node("Mul", [x, b.node("Sigmoid", [x], f"{name}.sigmoid")], name)


ACTIVATIONS: dict[str, Callable[[Builder, str, str], str]] = {
    "relu": lambda b, x, name: b.node("Relu", [x], name),
    "swish": _swish,
    "silu": _swish,
    "gelu": _gelu,
}


@dataclass(frozen=True)
class Shape:
    """The numbers that shape the graphs."""

    d: int
    vocab: int  # of the target; the source may have its own (split embeddings)
    source_vocab: int
    positions: int
    encoder_layers: int
    decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    encoder_ffn: int
    decoder_ffn: int
    activation: str
    embed_scale: float
    shared: bool  # one table for source and target
    tied: bool  # the head is the target's table


class Graphs:
    """Both graphs over one weight table. T is the length axis (source or width), R the rows."""

    def __init__(self, shape: Shape, tensors: Mapping[str, Array]) -> None:
        self.shape, self.tensors = shape, tensors
        self.weights: dict[str, Array] = {}

    def tensor(self, name: str) -> Array:
        return self.tensors[name if name in self.tensors else f"model.{name}"]

    def affine(self, b: Builder, x: str, name: str, weight: Array, bias: Array) -> str:
        """x [.., in] by weight [out, in] plus bias -> [.., out]."""
        product = b.node("MatMul", [x, b.weight(f"{name}.weight", weight.T)], f"{name}.matmul")
        return b.node("Add", [product, b.weight(f"{name}.bias", bias)], name)

    def linear(self, b: Builder, x: str, name: str) -> str:
        return self.affine(b, x, name, self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"))

    def norm(self, b: Builder, x: str, name: str) -> str:
        parts = [b.weight(f"{name}.{part}", self.tensor(f"{name}.{part}")) for part in ("weight", "bias")]
        return b.node("LayerNormalization", [x, *parts], name, axis=-1, epsilon=EPSILON)

    def residual(self, b: Builder, x: str, norm: str, sublayer: Callable[[str], str]) -> str:
        """norm(x + sublayer(x)): Marian is post-norm."""
        return self.norm(b, b.node("Add", [x, sublayer(x)], f"{norm}.sum"), norm)

    def embed(self, b: Builder, side: str, table: str) -> str:
        """ids, positions [R, T] -> [T, R, d]."""
        name = f"{side}.embed_tokens"
        x = b.node("Gather", [self.table(b, table), "input_ids"], name)
        if self.shape.embed_scale != 1.0:
            scale = b.weight("const.embed_scale", np.float32(self.shape.embed_scale).reshape(1))
            x = b.node("Mul", [x, scale], f"{side}.embed_scale")
        positions = self.tensor(f"{side}.embed_positions.weight")
        same = np.array_equal(positions, self.tensor("encoder.embed_positions.weight"))
        table = "embed_positions.weight" if same else f"{side}.embed_positions.weight"
        position = b.node("Gather", [b.weight(table, positions), "position_ids"], f"{side}.embed_positions")
        total = b.node("Add", [x, position], f"{side}.embed_sum")
        return b.node("Transpose", [total], f"{side}.embeddings", perm=[1, 0, 2])

    def table(self, b: Builder, name: str) -> str:
        """An embedding table [V, d] under one name for all that share it."""
        array = self.tensor(name)
        for other in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            if np.array_equal(array, self.tensor(other)):
                return b.weight("shared.weight" if self.shape.shared else other, array)
        return b.weight(name, array)

    def scaled_queries(self, name: str, heads: int) -> tuple[Array, Array]:
        """Weight and bias of the queries, with 1/sqrt(head_dim) multiplied in."""
        scale = np.float32((self.shape.d // heads) ** -0.5)
        return self.tensor(f"{name}.q_proj.weight") * scale, self.tensor(f"{name}.q_proj.bias") * scale

    def qkv(self, b: Builder, x: str, name: str, heads: int, outputs: tuple[str, str, str]) -> None:
        """x [T, R, d] -> queries, keys, values [T, R, heads, head_dim]."""
        weight, bias = self.scaled_queries(name, heads)
        parts = [self.tensor(f"{name}.{part}_proj.{kind}") for kind in ("weight", "bias") for part in "kv"]
        merged = self.affine(
            b, x, f"{name}.qkv_proj", np.concatenate([weight, *parts[:2]]), np.concatenate([bias, *parts[2:]])
        )
        shape = b.ints([0, 0, 3 * heads, self.shape.d // heads])
        b.node(
            "Split", [b.node("Reshape", [merged, shape], f"{name}.heads")], *outputs, axis=2, num_outputs=3
        )

    def attend(self, b: Builder, name: str, query: str, key: str, value: str, bias: str) -> str:
        """query [T, R, h, e], key [R, h, e, L], value [R, h, L, e], bias [R, 1, 1 or T, L] -> [T, R, d]."""
        query = b.node("Transpose", [query], f"{name}.query", perm=[1, 2, 0, 3])
        scores = b.node("MatMul", [query, key], f"{name}.scores")
        masked = b.node("Add", [scores, bias], f"{name}.masked")
        weights = b.node("Softmax", [masked], f"{name}.weights", axis=-1)
        context = b.node("MatMul", [weights, value], f"{name}.context")
        context = b.node("Transpose", [context], f"{name}.context_by_length", perm=[2, 0, 1, 3])
        context = b.node("Reshape", [context, b.ints([0, 0, self.shape.d])], f"{name}.merged")
        return self.linear(b, context, f"{name}.out_proj")

    def self_attention(self, b: Builder, name: str, heads: int, bias: str, cache: int | None, x: str) -> str:
        """With `cache` (a decoder layer), past keys and values precede the new ones, which are outputs."""
        query, key, value = f"{name}.q", f"{name}.k", f"{name}.v"
        if cache is not None:
            key, value = f"present_key.{cache}", f"present_value.{cache}"
        self.qkv(b, x, name, heads, (query, key, value))
        if cache is not None:
            key = b.node("Concat", [f"past_key.{cache}", key], f"{name}.all_keys", axis=0)
            value = b.node("Concat", [f"past_value.{cache}", value], f"{name}.all_values", axis=0)
        key = b.node("Transpose", [key], f"{name}.key", perm=[1, 2, 3, 0])
        value = b.node("Transpose", [value], f"{name}.value", perm=[1, 2, 0, 3])
        return self.attend(b, name, query, key, value, bias)

    def cross_attention(self, b: Builder, name: str, layer: int, x: str) -> str:
        heads = self.shape.decoder_heads
        query = self.affine(b, x, f"{name}.q_proj", *self.scaled_queries(name, heads))
        query = b.node("Reshape", [query, b.ints([0, 0, heads, self.shape.d // heads])], f"{name}.heads")
        return self.attend(b, name, query, f"cross_key.{layer}", f"cross_value.{layer}", "source_bias")

    def feed_forward(self, b: Builder, layer: str, x: str) -> str:
        hidden = self.linear(b, x, f"{layer}.fc1")
        hidden = ACTIVATIONS[self.shape.activation](b, hidden, f"{layer}.activation")
        return self.linear(b, hidden, f"{layer}.fc2")

    def encoder(self) -> Builder:
        shape, b = self.shape, Builder("encoder", self.weights)
        b.input("input_ids", np.int32, ["rows", "source"])
        b.input("position_ids", np.int32, ["rows", "source"])
        b.input("source_bias", np.float32, ["rows", 1, 1, "source"])
        x = self.embed(b, "encoder", "encoder.embed_tokens.weight")
        for i in range(shape.encoder_layers):
            layer, heads = f"encoder.layers.{i}", shape.encoder_heads
            attend = partial(self.self_attention, b, f"{layer}.self_attn", heads, "source_bias", None)
            x = self.residual(b, x, f"{layer}.self_attn_layer_norm", attend)
            x = self.residual(b, x, f"{layer}.final_layer_norm", partial(self.feed_forward, b, layer))
        self.cross_states(b, x)
        return b

    def cross_states(self, b: Builder, x: str) -> None:
        """x [source, R, d] -> every layer's cross_key [R, h, e, source], cross_value [R, h, source, e]."""
        layers, heads = range(self.shape.decoder_layers), self.shape.decoder_heads
        size, name = self.shape.d // heads, "decoder.encoder_attn.kv_proj"
        parts = [f"decoder.layers.{i}.encoder_attn.{part}_proj" for i in layers for part in "kv"]
        weight = np.concatenate([self.tensor(f"{part}.weight") for part in parts])
        bias = np.concatenate([self.tensor(f"{part}.bias") for part in parts])
        merged = self.affine(b, x, name, weight, bias)
        merged = b.node("Reshape", [merged, b.ints([0, 0, len(parts) * heads, size])], f"{name}.heads")
        b.node("Split", [merged], *parts, axis=2, num_outputs=len(parts))
        for i in layers:
            b.node("Transpose", [parts[2 * i]], f"cross_key.{i}", perm=[1, 2, 3, 0])
            b.node("Transpose", [parts[2 * i + 1]], f"cross_value.{i}", perm=[1, 2, 0, 3])
            b.output(f"cross_key.{i}", np.float32, ["rows", heads, size, "source"])
            b.output(f"cross_value.{i}", np.float32, ["rows", heads, "source", size])

    def step(self) -> Builder:
        shape, b = self.shape, Builder("step", self.weights)
        heads, size = shape.decoder_heads, shape.d // shape.decoder_heads
        b.input("input_ids", np.int32, ["rows", "width"])
        b.input("position_ids", np.int32, ["rows", "width"])
        b.input("self_bias", np.float32, ["rows", 1, "width", "past + width"])  # TVM reads the sum
        b.input("source_bias", np.float32, ["rows", 1, 1, "source"])
        for i in range(shape.decoder_layers):
            b.input(f"past_key.{i}", np.float32, ["past", "rows", heads, size])
            b.input(f"past_value.{i}", np.float32, ["past", "rows", heads, size])
            b.input(f"cross_key.{i}", np.float32, ["rows", heads, size, "source"])
            b.input(f"cross_value.{i}", np.float32, ["rows", heads, "source", size])
        x = self.embed(b, "decoder", "decoder.embed_tokens.weight")
        for i in range(shape.decoder_layers):
            layer = f"decoder.layers.{i}"
            attend = partial(self.self_attention, b, f"{layer}.self_attn", heads, "self_bias", i)
            x = self.residual(b, x, f"{layer}.self_attn_layer_norm", attend)
            attend = partial(self.cross_attention, b, f"{layer}.encoder_attn", i)
            x = self.residual(b, x, f"{layer}.encoder_attn_layer_norm", attend)
            x = self.residual(b, x, f"{layer}.final_layer_norm", partial(self.feed_forward, b, layer))
        self.head(b, x)
        for i in range(shape.decoder_layers):
            b.output(f"present_key.{i}", np.float32, ["width", "rows", heads, size])
            b.output(f"present_value.{i}", np.float32, ["width", "rows", heads, size])
        last = f"decoder.layers.{shape.decoder_layers - 1}.encoder_attn.weights"
        b.node("ReduceMean", [last, b.ints([1])], "alignment", keepdims=0)
        b.output("alignment", np.float32, ["rows", "width", "source"])
        return b

    def head(self, b: Builder, x: str) -> None:
        """x [width, R, d] -> logits [R, width, V]; the table is used as it is stored, behind a Transpose."""
        x = b.node("Transpose", [x], "decoder.output", perm=[1, 0, 2])
        table = b.node("Transpose", [self.table(b, "lm_head.weight")], "lm_head.transposed", perm=[1, 0])
        bias = self.tensor("final_logits_bias")[0]
        if bias.any():
            product = b.node("MatMul", [x, table], "lm_head.matmul")
            b.node("Add", [product, b.weight("final_logits_bias", bias)], "logits")
        else:
            b.node("MatMul", [x, table], "logits")
        b.output("logits", np.float32, ["rows", "width", self.shape.vocab])


def states(shape: Shape) -> list[StateSpec]:
    heads, size = shape.decoder_heads, shape.d // shape.decoder_heads
    specs = []
    for i in range(shape.decoder_layers):
        for part, length_axis in (("key", 3), ("value", 2)):
            specs.append(
                StateSpec(
                    f"past_{part}.{i}",
                    f"present_{part}.{i}",
                    role="self_kv",
                    update="append",
                    init="empty",
                    shape=("past", "rows", heads, size),
                    dtype="float32",
                    batch_axis=1,
                    length_axis=0,
                )
            )
            axes = ("rows", heads, size, "source") if part == "key" else ("rows", heads, "source", size)
            specs.append(
                StateSpec(
                    f"cross_{part}.{i}",
                    f"cross_{part}.{i}",
                    role="cross_kv",
                    update="constant",
                    init="encoder",
                    shape=axes,
                    dtype="float32",
                    batch_axis=0,
                    length_axis=length_axis,
                )
            )
    return specs
