"""Small real models for tests: ONNX graphs with a bundle's interface, and the same mathematics in numpy.

Two decoders: "attention" (key/value caches that grow) and "ssru" (a recurrent cell that is replaced).
`Toy.logits` is the reference: it knows no cache, batch or padding, and shares only weights with the graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgemt.manifest import Graph, Manifest, Model
from edgemt.runtimes.protocol import StateSpec

F32 = NDArray[np.float32]
EOS, UNK, PAD = 0, 1, 2


@dataclass
class Toy:
    """A model's sizes and weights. `peaked` scales the logits, so that distributions are far from uniform."""

    decoder: str = "attention"
    vocab: int = 23
    d: int = 16
    heads: int = 2
    layers: int = 2
    max_positions: int = 64
    peaked: float = 3.0
    seed: int = 0
    suppress: tuple[int, ...] = (PAD, UNK)
    top_k: bool = True  # False: the canonical graph, without TopK
    eos_bonus: float = 0.0  # added to the logit of the end, so that hypotheses end early (or never)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        d, ffn = self.d, 2 * self.d
        blocks = ["encoder"] + [f"decoder.{i}" for i in range(self.layers)]
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab, d), "positions": (self.max_positions, d)}
        for block in blocks:
            shapes |= {
                f"{block}.{n}": (d, d) for n in ("q", "k", "v", "o", "cq", "ck", "cv", "co", "wf", "wc")
            }
            shapes |= {f"{block}.up": (d, ffn), f"{block}.down": (ffn, d)}
        self.weights: dict[str, F32] = {
            name: (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
            for name, shape in shapes.items()
        }
        for name in ("embed", "positions"):
            self.weights[name] *= np.float32(np.sqrt(d))
        # Not the embedding's transpose: random tied weights only ever repeat the last word.
        head = random.standard_normal((d, self.vocab)) * self.peaked / np.sqrt(d)
        self.weights["head"] = head.astype(np.float32)
        bias = (random.standard_normal(self.vocab) * 0.5).astype(np.float32)
        bias[EOS] += self.eos_bonus
        self.weights["head_bias"] = bias

    # The reference: whole sequences, no cache.

    def logits(self, source: Sequence[int], target: Sequence[int]) -> F32:
        """Logits [len(target), vocab] after every target token, given the source."""
        return self.run(source, target)[0]

    def alignment(self, source: Sequence[int], target: Sequence[int]) -> F32:
        """Cross-attention of the last layer, mean over heads: [len(target), len(source)]."""
        return self.run(source, target)[1]

    def run(self, source: Sequence[int], target: Sequence[int]) -> tuple[F32, F32]:
        w = self.weights
        memory = w["embed"][list(source)] + w["positions"][: len(source)]
        memory = self._norm(memory + self._attend("encoder", "", memory, memory, causal=False)[0])
        memory = self._norm(memory + np.maximum(memory @ w["encoder.up"], 0) @ w["encoder.down"])
        x = w["embed"][list(target)] + w["positions"][: len(target)]
        alignment = np.zeros((len(target), len(source)), np.float32)
        for i in range(self.layers):
            block = f"decoder.{i}"
            if self.decoder == "attention":
                x = self._norm(x + self._attend(block, "", x, x, causal=True)[0])
            else:
                cell, hidden = np.zeros(self.d, np.float32), []
                for row in x:
                    forget = 1 / (1 + np.exp(-(row @ w[f"{block}.wf"])))
                    cell = forget * cell + (1 - forget) * (row @ w[f"{block}.wc"])
                    hidden.append(np.maximum(cell, 0))
                x = self._norm(x + np.stack(hidden))
            out, alignment = self._attend(block, "c", x, memory, causal=False)
            x = self._norm(x + out)
            x = self._norm(x + np.maximum(x @ w[f"{block}.up"], 0) @ w[f"{block}.down"])
        return x @ w["head"] + w["head_bias"], alignment

    def _attend(self, block: str, kind: str, x: F32, memory: F32, causal: bool) -> tuple[F32, F32]:
        w, size = self.weights, self.d // self.heads
        out, seen = np.zeros_like(x), np.zeros((len(x), len(memory)), np.float32)
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            q = x @ w[f"{block}.{kind}q"][:, part]
            k = memory @ w[f"{block}.{kind}k"][:, part]
            scores = q @ k.T / np.sqrt(size)
            if causal:
                scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            seen += weights / self.heads
            out[:, part] = weights @ (memory @ w[f"{block}.{kind}v"][:, part])
        return out @ w[f"{block}.{kind}o"], seen

    @staticmethod
    def _norm(x: F32) -> F32:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def logp(self, source: Sequence[int], target: Sequence[int]) -> F32:
        """Log-probabilities [len(target), vocab]."""
        logits = self.logits(source, target).astype(np.float64)
        top = logits.max(-1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))

    # The graphs.

    def write(self, directory: Path, external: bool = False) -> Manifest:
        """Write encoder.onnx and step.onnx, with their weights inside or beside them; return the manifest."""
        graphs: dict[str, Graph] = {}
        for role, emit in (("encoder", self._encoder), ("step", self._step)):
            model = emit()
            file = f"{role}.onnx"
            external_to = {"save_as_external_data": True, "location": f"{role}.bin", "size_threshold": 256}
            onnx.save(model, str(directory / file), **(external_to if external else {}))
            graphs[role] = Graph(
                file, tuple(i.name for i in model.graph.input), tuple(o.name for o in model.graph.output)
            )
        return Manifest(
            name="toy", family="seq2seq", languages=[["zh", "en"]], target="onnxruntime", precision="fp32",
            graphs=graphs, states=self.states(), model=self.model(), tokenizer={}, generation={}, features={},
            licence="Apache-2.0", provenance={}, gate={},
        )  # fmt: skip

    def model(self) -> Model:
        return Model(self.vocab, EOS, PAD, UNK, PAD, self.max_positions, {}, list(self.suppress))

    def states(self) -> list[StateSpec]:
        h, size, found = self.heads, self.d // self.heads, []
        for i in range(self.layers):
            if self.decoder == "attention":
                shape = ("past", "rows", h, size)
                for kind in ("key", "value"):
                    past, present = f"past_{kind}.{i}", f"present_{kind}.{i}"
                    found.append(
                        StateSpec(past, present, "self_kv", "append", "empty", shape, "float32", 1, 0)
                    )
            else:
                shape = ("rows", self.d)
                cell, after = f"cell.{i}", f"next_cell.{i}"
                found.append(StateSpec(cell, after, "recurrent", "replace", "zeros", shape, "float32", 0))
            for kind, shape in (("key", ("rows", h, size, "source")), ("value", ("rows", h, "source", size))):
                name = f"cross_{kind}.{i}"
                found.append(
                    StateSpec(
                        name,
                        name,
                        "cross_kv",
                        "constant",
                        "encoder",
                        shape,
                        "float32",
                        0,
                        shape.index("source"),
                    )
                )
        return found

    def _encoder(self) -> onnx.ModelProto:
        g = _Emitter(self)
        ids, positions = (
            g.input("input_ids", "i", ["rows", "source"]),
            g.input("position_ids", "i", ["rows", "source"]),
        )
        bias = g.input("source_bias", "f", ["rows", 1, 1, "source"])
        x = g.op("Add", g.op("Gather", "embed", ids), g.op("Gather", "positions", positions))
        x = g.norm(g.op("Add", x, g.attend("encoder", "", x, g.keys("encoder", "", x), bias)[0]))
        x = g.norm(g.op("Add", x, g.feed_forward("encoder", x)), out="encoder.out")
        h, size = self.heads, self.d // self.heads
        for i in range(self.layers):
            g.heads(f"decoder.{i}.ck", x, (0, 2, 3, 1), out=f"cross_key.{i}")
            g.heads(f"decoder.{i}.cv", x, (0, 2, 1, 3), out=f"cross_value.{i}")
            g.output(f"cross_key.{i}", ["rows", h, size, "source"])
            g.output(f"cross_value.{i}", ["rows", h, "source", size])
        return g.model("encoder")

    def _step(self) -> onnx.ModelProto:
        g, h, size = _Emitter(self), self.heads, self.d // self.heads
        attention = self.decoder == "attention"
        ids, positions = (
            g.input("input_ids", "i", ["rows", "width"]),
            g.input("position_ids", "i", ["rows", "width"]),
        )
        self_bias = g.input("self_bias", "f", ["rows", 1, "width", "total"]) if attention else ""
        bias = g.input("source_bias", "f", ["rows", 1, 1, "source"])
        for state in self.states():
            g.input(state.input, "f", list(state.shape))
        x = g.op("Add", g.op("Gather", "embed", ids), g.op("Gather", "positions", positions))
        seen = ""
        for i in range(self.layers):
            block = f"decoder.{i}"
            if attention:
                both = []
                for kind, perm in (("k", (1, 2, 3, 0)), ("v", (1, 2, 0, 3))):
                    name = {"k": "key", "v": "value"}[kind]
                    new = g.heads(f"{block}.{kind}", x, (1, 0, 2, 3), out=f"present_{name}.{i}")
                    g.output(new, ["width", "rows", h, size])
                    whole = g.op("Concat", f"past_{name}.{i}", new, axis=0)
                    both.append(g.op("Transpose", whole, perm=perm))
                mixed = g.attend(block, "", x, (both[0], both[1]), self_bias)[0]
            else:
                flat = g.op("Squeeze", x, g.ints([1]))
                forget = g.op("Sigmoid", g.op("MatMul", flat, f"{block}.wf"))
                rest = g.op("Sub", g.const(np.float32(1)), forget)
                new = g.op("Mul", rest, g.op("MatMul", flat, f"{block}.wc"))
                cell = g.op("Add", g.op("Mul", forget, f"cell.{i}"), new, out=f"next_cell.{i}")
                g.output(cell, ["rows", self.d])
                mixed = g.op("Unsqueeze", g.op("Relu", cell), g.ints([1]))
            x = g.norm(g.op("Add", x, mixed))
            mixed, seen = g.attend(block, "c", x, (f"cross_key.{i}", f"cross_value.{i}"), bias)
            x = g.norm(g.op("Add", x, mixed))
            x = g.norm(g.op("Add", x, g.feed_forward(block, x)), out=f"{block}.out")
        g.op("Add", g.op("MatMul", x, "head"), "head_bias", out="logits")
        g.output("logits", ["rows", "width", self.vocab])
        g.op("ReduceMean", seen, g.ints([1]), keepdims=0, out="alignment")
        g.output("alignment", ["rows", "width", "source"])
        if self.top_k:
            k = g.input("top_k", "l", [1])
            barred = np.zeros(self.vocab, np.float32)
            barred[list(self.suppress)] = -30000
            g.op("LogSoftmax", "logits", axis=-1, out="logp")
            g.output("logp", ["rows", "width", self.vocab])
            biased = g.op("Add", "logp", g.const(barred))
            g.nodes.append(helper.make_node("TopK", [biased, k], ["top_values", "top_ids"], axis=-1))
            g.output("top_values", ["rows", "width", "k"])
            g.output("top_ids", ["rows", "width", "k"], TensorProto.INT64)
        return g.model("step")


class _Emitter:
    """Collects nodes; every method returns the name of the tensor it makes."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.constants: dict[str, Any] = {}

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def const(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def ints(self, values: Sequence[int]) -> str:
        return self.const(np.array(values, np.int64))

    def input(self, name: str, kind: str, shape: list[Any]) -> str:
        types = {"i": TensorProto.INT32, "l": TensorProto.INT64, "f": TensorProto.FLOAT}
        self.inputs.append(helper.make_tensor_value_info(name, types[kind], shape))
        return name

    def output(self, name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def norm(self, x: str, out: str = "") -> str:
        scale = self.const(np.ones(self.toy.d, np.float32))
        return self.op("LayerNormalization", x, scale, axis=-1, epsilon=1e-5, out=out)

    def heads(self, weight: str, x: str, perm: Sequence[int], out: str = "") -> str:
        """[rows, n, d] through a weight to heads, transposed."""
        shape = self.ints([0, 0, self.toy.heads, self.toy.d // self.toy.heads])
        return self.op(
            "Transpose", self.op("Reshape", self.op("MatMul", x, weight), shape), perm=perm, out=out
        )

    def keys(self, block: str, kind: str, x: str) -> tuple[str, str]:
        return self.heads(f"{block}.{kind}k", x, (0, 2, 3, 1)), self.heads(
            f"{block}.{kind}v", x, (0, 2, 1, 3)
        )

    def attend(self, block: str, kind: str, x: str, memory: tuple[str, str], bias: str) -> tuple[str, str]:
        q = self.heads(f"{block}.{kind}q", x, (0, 2, 1, 3))
        scale = self.const(np.float32(1 / np.sqrt(self.toy.d // self.toy.heads)))
        scores = self.op("Add", self.op("Mul", self.op("MatMul", q, memory[0]), scale), bias)
        weights = self.op("Softmax", scores, axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, memory[1]), perm=(0, 2, 1, 3))
        flat = self.op("Reshape", mixed, self.ints([0, 0, self.toy.d]))
        return self.op("MatMul", flat, f"{block}.{kind}o"), weights

    def feed_forward(self, block: str, x: str) -> str:
        return self.op("MatMul", self.op("Relu", self.op("MatMul", x, f"{block}.up")), f"{block}.down")

    def model(self, name: str) -> onnx.ModelProto:
        used = {i for node in self.nodes for i in node.input}
        weights = {k: v for k, v in (self.toy.weights | self.constants).items() if k in used}
        graph = helper.make_graph(
            self.nodes,
            name,
            self.inputs,
            self.outputs,
            [numpy_helper.from_array(v, k) for k, v in weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
