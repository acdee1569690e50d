"""Greedy search of one sentence as one ONNX graph: ONNX Runtime's Loop around the step.

Between two steps nothing returns to Python, and nothing is bound or looked up by name. With one row and one
token a step there is nothing to mask and nothing to transpose, and attention is one node: for a decoder layer
GroupQueryAttention (which takes the packed Q|K|V product and appends to the cache itself) and
MultiHeadAttention over the encoded source, both of the domain com.microsoft. 42 nodes a token instead of 67
(two layers, dynamic INT8).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from edgemt.export.graphs.graphset import IR_VERSION, Canonical, GraphSet, initializer

ROLE = "greedy"
MICROSOFT = "com.microsoft"
SELF, CROSS = ".self_attn", ".encoder_attn"
# The nodes between the projections of an attention, by the end of their names, which one node replaces.
ATTENTION = {
    *("heads", "q", "query", "all_keys", "all_values", "key", "value", "scores", "masked", "weights"),
    *("context", "context_by_length", "merged"),
}
UNMASKED = "candidates"  # the logits plus the bias that bars what is never an answer


def add_greedy(graphs: GraphSet, canonical: Canonical) -> GraphSet:
    """Add the graph `greedy` to lowered graphs whose step has its heads (float32 inside, or INT8 products).

    Inputs: start i64 [1, 1], max_new i64 scalar, and what the encoder returns for one row.
    Output: tokens i64 [n, 1, 1], the last of them the end of sentence unless max_new came first.
    """
    graphs = graphs.copy()
    graphs.graphs[ROLE] = _Loop(graphs.graphs["step"], canonical).model()
    return graphs


class _Loop:
    """Rewrites one step graph, by the names of its nodes (see export/graphs/transformer.py)."""

    def __init__(self, step: ModelProto, canonical: Canonical) -> None:
        self.step, self.meta = step.graph, canonical.model
        self.opsets = [*step.opset_import]
        self.past = [spec for spec in canonical.states if spec.update == "append"]
        self.cross = [spec for spec in canonical.states if spec.update == "constant"]
        self.made = {name: node for node in self.step.node for name in node.output}
        self.constants: dict[str, TensorProto] = {init.name: init for init in self.step.initializer}
        self.nodes: list[NodeProto] = []

    def model(self) -> ModelProto:
        body = self.body()
        self.nodes = []
        for spec in self.cross:
            if spec.input.startswith("cross_key."):  # once a sentence: its node wants keys as values are
                self.node("Transpose", [spec.input], [_by_length(spec.input)], perm=[0, 1, 3, 2])
        heads, size = map(int, self.past[0].shape[2:])
        self.constant("const.no_past", np.zeros((1, heads, 0, size), np.float32))
        carried = ["start", *("const.no_past" for _ in self.past)]
        finals = ["last", *(f"final.{spec.input}" for spec in self.past)]
        self.node("Loop", ["max_new", "", *carried], [*finals, "tokens"], name=ROLE, body=body)
        inputs = [_value("start", TensorProto.INT64, ["rows", 1]), _value("max_new", TensorProto.INT64, [])]
        inputs += [_value(spec.input, TensorProto.FLOAT, spec.shape) for spec in self.cross]
        tokens = _value("tokens", TensorProto.INT64, ["tokens", "rows", 1])
        read = {name for node in [*self.nodes, *body.node] for name in node.input}
        constants = [init for name, init in self.constants.items() if name in read]
        graph = helper.make_graph(self.nodes, ROLE, inputs, [tokens], constants)
        opsets = [*self.opsets, helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgemt")

    def body(self) -> GraphProto:
        """One token: (iteration, go on, token, past …) -> (go on, next token, past …, next token)."""
        one = self.constant("const.one_by_one", np.array([1, 1], np.int64))
        self.node("Reshape", ["iteration", one], ["position_ids"])
        self.node("Cast", ["iteration"], ["past_length"], to=TensorProto.INT32)
        vector = self.constant("const.vector", np.array([1], np.int64))
        self.node("Reshape", ["past_length", vector], ["past_lengths"])
        self.node("Add", ["past_length", self.constant("const.one_i32", np.int32(1))], ["length"])
        bypassed: dict[str, str] = {}
        for node in self.step.node:
            attention, _, part = node.name.rpartition(".")
            if attention.endswith((SELF, CROSS)) and part in ATTENTION:
                if part == "merged":
                    self.attend(attention)
            elif node.name in ("decoder.embeddings", "decoder.output", "logp"):
                bypassed[node.output[0]] = bypassed.get(node.input[0], node.input[0])
            elif node.name not in ("alignment", "top_k"):
                kept = NodeProto()
                kept.CopyFrom(node)
                self.nodes.append(kept)
        for node in self.nodes:
            node.input[:] = [bypassed.get(name, name) for name in node.input]
        self.node("ArgMax", [UNMASKED], ["next"], axis=-1, keepdims=0)
        end = self.constant("const.end", np.array([[self.meta.eos_id]], np.int64))
        self.node("Equal", ["next", end], ["ended"])
        self.node("Not", ["ended"], ["not_ended"])
        scalar = self.constant("const.scalar", np.zeros(0, np.int64))
        self.node("Reshape", ["not_ended", scalar], ["go_on"])
        self.node("Identity", ["next"], ["token"])
        shape = ["rows", self.past[0].shape[2], "past", self.past[0].shape[3]]
        inputs = [
            _value("iteration", TensorProto.INT64, []),
            _value("going", TensorProto.BOOL, []),
            _value("input_ids", TensorProto.INT64, ["rows", 1]),  # 1 would undo QDQ fusion
            *(_value(spec.input, TensorProto.FLOAT, shape) for spec in self.past),
        ]
        shape = [*shape[:2], "past + 1", shape[3]]
        outputs = [
            _value("go_on", TensorProto.BOOL, []),
            _value("next", TensorProto.INT64, ["rows", 1]),
            *(_value(spec.output, TensorProto.FLOAT, shape) for spec in self.past),
            _value("token", TensorProto.INT64, ["rows", 1]),
        ]
        return helper.make_graph(self.nodes, "token", inputs, outputs)

    def attend(self, name: str) -> None:
        """One node for the attention `name`, its queries scaled already."""
        product = self.made[f"{name}.heads"].input[0]
        layer = name.split(".")[-2]
        heads = self.past[0].shape[2]
        shared: dict[str, Any] = {"num_heads": heads, "scale": 1.0, "domain": MICROSOFT}
        if name.endswith(SELF):
            past = [f"past_key.{layer}", f"past_value.{layer}"]
            present = [f"present_key.{layer}", f"present_value.{layer}"]
            inputs = [product, "", "", *past, "past_lengths", "length"]
            self.node(
                "GroupQueryAttention", inputs, [f"{name}.merged", *present], kv_num_heads=heads, **shared
            )
        else:
            inputs = [product, _by_length(f"cross_key.{layer}"), f"cross_value.{layer}"]
            self.node("MultiHeadAttention", inputs, [f"{name}.merged"], **shared)

    def node(
        self, op: str, inputs: Iterable[str], outputs: list[str], name: str = "", **attributes: Any
    ) -> None:
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name or outputs[0], **attributes))

    def constant(self, name: str, value: Any) -> str:
        self.constants[name] = initializer(name, np.asarray(value))
        return name


def _by_length(name: str) -> str:
    return f"{name}.by_length"


def _value(name: str, kind: int, shape: Iterable[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))
