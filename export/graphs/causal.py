"""Decoder-only models: HunYuanDenseV1 (HY-MT), Qwen2, Qwen3 and Llama, from one description each.

One canonical graph, `step`, is prefill and decoding alike: it takes any number of tokens a row behind any
number of cached ones, and computes the head at the wanted positions only. Inside it the layout is
[length, rows, d], so that keys and values are cached as they come. Q|K|V is one product and so is gate|up;
queries and keys turn (RoPE) and are normalised together, and the scaling of the queries is in a weight.

Tensors are named after the modules of the checkpoint, without the leading `model.`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.read import Checkpoint
from edgemt.export.checkpoints.tensors import Stored
from edgemt.export.graphs.graphset import Array, Builder, Canonical, lazy
from edgemt.manifest import Model
from edgemt.runtimes.protocol import StateSpec

# Positions of the rotary tables, where the checkpoint has more: a translation needs no 262,144 of them, and
# they would take 134 MB in HY-MT.
MOST_POSITIONS = 4096


@dataclass(frozen=True)
class Kind:
    """What sets one architecture apart from the others."""

    norms: tuple[str, str] | None = None  # modules that normalise each head's queries and keys
    norm_turned: bool = False  # they do so behind RoPE instead of before it


KINDS = {
    "HunYuanDenseV1ForCausalLM": Kind(norms=("query_layernorm", "key_layernorm"), norm_turned=True),
    "LlamaForCausalLM": Kind(),
    "Qwen2ForCausalLM": Kind(),
    "Qwen3ForCausalLM": Kind(norms=("q_norm", "k_norm")),
}


@dataclass(frozen=True)
class Shape:
    """The numbers that shape the graph."""

    kind: Kind
    d: int
    vocab: int
    positions: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float


def shape_of(checkpoint: Checkpoint) -> Shape:
    """The shape that config.json asks for. Raises EdgemtError if it is incomplete or asks for more."""
    config, where = checkpoint.config, checkpoint.directory / "config.json"
    kind = KINDS[checkpoint.architecture]
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise EdgemtError(f"{where} names the activation {activation}; edgemt exports SwiGLU models (silu)")
    if config.get("use_sliding_window"):
        raise EdgemtError(f"{where} uses sliding-window attention, which edgemt does not export")
    try:
        d, heads = config["hidden_size"], config["num_attention_heads"]
        shape = Shape(
            kind=kind,
            d=d,
            vocab=config["vocab_size"],
            positions=min(config["max_position_embeddings"], MOST_POSITIONS),
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or d // heads,
            epsilon=config["rms_norm_eps"],
        )
    except KeyError as error:
        raise EdgemtError(f"{where} lacks {error}; give a complete checkpoint") from None
    if heads % shape.kv_heads or shape.head_dim % 2:
        raise EdgemtError(f"{where}: {heads} heads of {shape.head_dim} do not fit {shape.kv_heads} key heads")
    return shape


def frequencies(checkpoint: Checkpoint, head_dim: int) -> tuple[Array, float]:
    """RoPE's inverse frequencies, f64 [head_dim / 2], and the factor on its cosines and sines.

    HY-MT's `alpha` widens the base once and for all (NTK-aware scaling: base · alpha^(e / (e - 2))); the
    other kinds are transformers' own. Raises EdgemtError for one that changes with the text's length.
    """
    config, where = checkpoint.config, checkpoint.directory / "config.json"
    scaling: dict[str, Any] = config.get("rope_scaling") or {}
    name = scaling.get("rope_type", scaling.get("type", "default"))
    base = float(config.get("rope_theta", 10000.0))
    if name == "dynamic" and scaling.get("alpha"):
        base *= float(scaling["alpha"]) ** (head_dim / (head_dim - 2))
        name = "default"
    powers = np.arange(0, head_dim, 2) / head_dim
    if name == "default":
        return base**-powers, 1.0
    if name not in ("linear", "llama3", "yarn"):
        raise EdgemtError(f"{where} scales positions by {name!r}, which depends on the length of the text")
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found, factor = ROPE_INIT_FUNCTIONS[name](AutoConfig.for_model(**config), "cpu")
    return found.double().numpy(), float(factor)


class Graph:
    """The step graph. T is the width of the step, R the rows, h and kv the heads, e their size."""

    def __init__(self, shape: Shape, tensors: Mapping[str, Stored], rotary: tuple[Array, float]) -> None:
        self.shape, self.tensors = shape, tensors
        self.b = Builder("step", {})
        angle = np.arange(shape.positions)[:, None] * rotary[0][None]
        cos, sin = (part(angle).astype(np.float32) * np.float32(rotary[1]) for part in (np.cos, np.sin))
        # x · cos + (x2 | x1) · (-sin | sin): the halves change places and none is negated.
        self.rotary = {"cos": np.hstack([cos, cos]), "sin": np.hstack([-sin, sin])}

    def tensor(self, name: str) -> Array:
        return self.tensors[f"model.{name}"].load()

    def table(self, name: str) -> Array:
        """An embedding table or head [V, d], by its name in the checkpoint."""
        stored = self.tensors[name]
        return lazy(stored.shape, np.float32, stored.load)

    def number(self, name: str, value: float) -> str:
        return self.b.weight(f"const.{name}", np.float32(value).reshape(1))

    def linear(self, x: str, name: str, parts: list[str], scale: Sequence[float] = (1.0,)) -> str:
        """x [.., in] by the weights [out, in] of `parts` side by side, and their biases if they have any."""
        scales = [np.float32(factor) for factor in (*scale, *[1.0] * (len(parts) - len(scale)))]
        shapes = [self.tensors[f"model.{part}.weight"].shape for part in parts]
        outputs = sum(shape[0] for shape in shapes)

        def load() -> Array:
            merged = np.empty((outputs, shapes[0][1]), np.float32)
            start = 0
            for part, factor, (rows, _) in zip(parts, scales, shapes, strict=True):
                np.multiply(self.tensor(f"{part}.weight"), factor, out=merged[start : start + rows])
                start += rows
            return merged.T

        weight = self.b.weight(f"{name}.weight", lazy((shapes[0][1], outputs), np.float32, load))
        product = self.b.node("MatMul", [x, weight], f"{name}.matmul")
        biases = [
            self.tensor(f"{part}.bias") * factor
            for part, factor in zip(parts, scales, strict=True)
            if f"model.{part}.bias" in self.tensors
        ]
        if not biases:
            return product
        return self.b.node("Add", [product, self.b.weight(f"{name}.bias", np.concatenate(biases))], name)

    def normalise(self, x: str, name: str, weight: Array) -> str:
        """x / rms(x) · weight over the last axis (RMSNorm, https://arxiv.org/abs/1910.07467)."""
        square = self.b.node("Pow", [x, self.number("two", 2.0)], f"{name}.square")
        mean = self.b.node("ReduceMean", [square, self.b.ints([-1])], f"{name}.mean", keepdims=1)
        shifted = self.b.node("Add", [mean, self.number("epsilon", self.shape.epsilon)], f"{name}.shifted")
        root = self.b.node("Sqrt", [shifted], f"{name}.root")
        unit = self.b.node("Div", [x, root], f"{name}.unit")
        return self.b.node("Mul", [unit, self.b.weight(f"{name}.weight", weight)], name)

    def norm(self, x: str, name: str) -> str:
        return self.normalise(x, name, self.tensor(f"{name}.weight"))

    def turns(self) -> None:
        """position_ids [R, T] -> rotary.cos, rotary.sin [T, R, 1, e]."""
        for part, table in self.rotary.items():
            name = f"rotary.{part}"
            found = self.b.node(
                "Gather", [self.b.weight(f"{name}.table", table), "position_ids"], f"{name}.by_row"
            )
            found = self.b.node("Transpose", [found], f"{name}.by_length", perm=[1, 0, 2])
            self.b.node("Unsqueeze", [found, self.b.ints([2])], name)

    def turn(self, x: str, name: str) -> str:
        """RoPE (https://arxiv.org/abs/2104.09864) on x [T, R, heads, e], in halves as Hugging Face has it."""
        first, second = f"{name}.first", f"{name}.second"
        self.b.node("Split", [x], first, second, axis=3, num_outputs=2)
        swapped = self.b.node("Concat", [second, first], f"{name}.swapped", axis=3)
        straight = self.b.node("Mul", [x, "rotary.cos"], f"{name}.straight")
        across = self.b.node("Mul", [swapped, "rotary.sin"], f"{name}.across")
        return self.b.node("Add", [straight, across], f"{name}.turned")

    def queries_and_keys(self, x: str, name: str) -> str:
        """The first h + kv heads of Q|K|V, turned and normalised: [T, R, h + kv, e]."""
        shape, kind = self.shape, self.shape.kind
        if kind.norms is None:
            return self.turn(x, name)
        query, key = (self.tensor(f"{name}.{norm}.weight") for norm in kind.norms)
        scaled = query * np.float32(shape.head_dim**-0.5)
        weight = np.concatenate([np.tile(scaled, (shape.heads, 1)), np.tile(key, (shape.kv_heads, 1))])
        if kind.norm_turned:
            return self.normalise(self.turn(x, name), f"{name}.qk_norm", weight)
        return self.turn(self.normalise(x, f"{name}.qk_norm", weight), name)

    def attention(self, x: str, layer: int) -> str:
        """x [T, R, d] -> [T, R, d]; past keys and values precede the new ones, which are outputs."""
        shape, b, name = self.shape, self.b, f"layers.{layer}.self_attn"
        h, kv, e = shape.heads, shape.kv_heads, shape.head_dim
        parts = [f"{name}.{part}_proj" for part in "qkv"]
        scale = [1.0 if shape.kind.norms else e**-0.5]  # a normalised query has it in its norm
        merged = self.linear(x, f"{name}.qkv_proj", parts, scale)
        merged = b.node("Reshape", [merged, b.ints([0, 0, h + 2 * kv, e])], f"{name}.heads")
        key, value = f"present_key.{layer}", f"present_value.{layer}"
        b.node("Split", [merged, b.ints([h + kv, kv])], f"{name}.qk", value, axis=2)
        turned = self.queries_and_keys(f"{name}.qk", name)
        b.node("Split", [turned, b.ints([h, kv])], f"{name}.q", key, axis=2)
        key = b.node("Concat", [f"past_key.{layer}", key], f"{name}.all_keys", axis=0)
        value = b.node("Concat", [f"past_value.{layer}", value], f"{name}.all_values", axis=0)
        # The h / kv queries of one key and all new tokens are the rows of one product: keys and values are
        # read once, and it is the same kernel at any width, which one row alone would not get.
        query = b.node("Reshape", [f"{name}.q", b.ints([0, 0, kv, h // kv, e])], f"{name}.groups")
        query = b.node("Transpose", [query], f"{name}.query_by_head", perm=[1, 2, 3, 0, 4])
        query = b.node("Reshape", [query, b.ints([0, 0, -1, e])], f"{name}.query")
        key = b.node("Transpose", [key], f"{name}.key", perm=[1, 2, 3, 0])
        value = b.node("Transpose", [value], f"{name}.value", perm=[1, 2, 0, 3])
        scores = b.node("MatMul", [query, key], f"{name}.scores")
        masked = b.node("Add", [scores, "grouped_bias"], f"{name}.masked")
        weights = b.node("Softmax", [masked], f"{name}.weights", axis=-1)
        context = b.node("MatMul", [weights, value], f"{name}.context")
        context = b.node("Reshape", [context, b.ints([0, kv, h // kv, -1, e])], f"{name}.context_by_head")
        context = b.node("Transpose", [context], f"{name}.context_by_length", perm=[3, 0, 1, 2, 4])
        context = b.node("Reshape", [context, b.ints([0, 0, h * e])], f"{name}.merged")
        return self.linear(context, f"{name}.o_proj", [f"{name}.o_proj"])

    def feed_forward(self, x: str, layer: int) -> str:
        """down(silu(gate(x)) · up(x)), SwiGLU (https://arxiv.org/abs/2002.05202)."""
        name = f"layers.{layer}.mlp"
        merged = self.linear(x, f"{name}.gate_up_proj", [f"{name}.gate_proj", f"{name}.up_proj"])
        gate, up = f"{name}.gate", f"{name}.up"
        self.b.node("Split", [merged], gate, up, axis=-1, num_outputs=2)
        opened = self.b.node(
            "Mul", [gate, self.b.node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.opened"
        )
        hidden = self.b.node("Mul", [opened, up], f"{name}.hidden")
        return self.linear(hidden, f"{name}.down_proj", [f"{name}.down_proj"])

    def step(self) -> Builder:
        shape, b = self.shape, self.b
        cache = ["past", "rows", shape.kv_heads, shape.head_dim]
        b.input("input_ids", np.int32, ["rows", "width"])
        b.input("position_ids", np.int32, ["rows", "width"])
        b.input("self_bias", np.float32, ["rows", 1, "width", "past + width"])  # TVM reads the sum
        b.input("wanted", np.int32, ["rows", "wanted"])  # places of the answers, as column · rows + row
        for i in range(shape.layers):
            b.input(f"past_key.{i}", np.float32, cache)
            b.input(f"past_value.{i}", np.float32, cache)
        table = b.weight("embed_tokens.weight", self.table("model.embed_tokens.weight"))
        x = b.node("Gather", [table, "input_ids"], "embed_tokens")
        x = b.node("Transpose", [x], "embeddings", perm=[1, 0, 2])
        self.turns()
        b.node("Concat", ["self_bias"] * (shape.heads // shape.kv_heads), "grouped_bias", axis=2)
        for i in range(shape.layers):
            layer = f"layers.{i}"
            x = b.node(
                "Add", [x, self.attention(self.norm(x, f"{layer}.input_layernorm"), i)], f"{layer}.attended"
            )
            hidden = self.feed_forward(self.norm(x, f"{layer}.post_attention_layernorm"), i)
            x = b.node("Add", [x, hidden], layer)
        self.head(x, table)
        for i in range(shape.layers):
            b.output(f"present_key.{i}", np.float32, ["width", *cache[1:]])
            b.output(f"present_value.{i}", np.float32, ["width", *cache[1:]])
        return b

    def head(self, x: str, table: str) -> None:
        """x [T, R, d] -> logits [R, wanted, V]; the table is used as it is stored, behind a Transpose."""
        b = self.b
        x = b.node("Reshape", [x, b.ints([-1, self.shape.d])], "places")
        x = self.norm(b.node("Gather", [x, "wanted"], "wanted_places"), "norm")
        if "lm_head.weight" in self.tensors:  # else it is tied to the embedding
            table = b.weight("lm_head.weight", self.table("lm_head.weight"))
        b.node("MatMul", [x, b.node("Transpose", [table], "lm_head.transposed", perm=[1, 0])], "logits")
        b.output("logits", np.float32, ["rows", "wanted", self.shape.vocab])


def states(shape: Shape) -> list[StateSpec]:
    return [
        StateSpec(
            f"past_{part}.{i}",
            f"present_{part}.{i}",
            role="self_kv",
            update="append",
            init="empty",
            shape=("past", "rows", shape.kv_heads, shape.head_dim),
            dtype="float32",
            batch_axis=1,
            length_axis=0,
        )
        for i in range(shape.layers)
        for part in ("key", "value")
    ]


def build(checkpoint: Checkpoint, start: int, end: int, control: Sequence[int]) -> Canonical:
    """The canonical graph of a checkpoint whose weights are checked. Raises EdgemtError as `shape_of`.

    `start` is the last id of every prompt, `end` that of an answer, `control` the ids that no answer holds.
    """
    shape = shape_of(checkpoint)
    builder = Graph(shape, checkpoint.stored, frequencies(checkpoint, shape.head_dim)).step()
    model = Model(
        vocab_size=shape.vocab,
        eos_id=end,
        pad_id=end,
        unk_id=end,
        start_id=start,
        max_positions=shape.positions,
        source_prefix={},
        suppress=sorted(set(control) - {end}),
    )
    graphs = {"step": builder.model()}
    return Canonical(graphs, builder.weights, states=states(shape), model=model, features={})
