"""A key/value cache of 8 bits for decoder-only models: a rewrite of the canonical step graph.

Every head and channel has a scale and a middle, found by calibration: code = round((x - middle) / scale). New
keys and values are turned into codes before anything reads them, so that a text gives the same however it is
cut into steps. The codes are never unpacked: a query is multiplied by the keys' scales, and what attention
makes of the values' codes by theirs. The keys' middle adds the same to all scores of a query, which softmax
does not see; that of the values, whose weights sum to one, is added at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from edgemt.calibration.cache import Range
from edgemt.export.graphs.graphset import Array, Canonical, initializer

LEVELS = 127  # on each side of the middle


def to_cache8(canonical: Canonical, ranges: Mapping[str, Range]) -> Canonical:
    """The graph with INT8 states; `ranges` by the name of each state's input."""
    rewriter = _Rewriter(canonical, ranges)
    return dataclasses.replace(
        canonical,
        graphs={**canonical.graphs, "step": rewriter.run()},
        weights=rewriter.weights,
        states=[dataclasses.replace(spec, dtype="int8") for spec in canonical.states],
    )


class _Rewriter:
    def __init__(self, canonical: Canonical, ranges: Mapping[str, Range]) -> None:
        self.model = canonical.copy().graphs["step"]
        self.weights, self.ranges = dict(canonical.weights), ranges
        self.states = {spec.output: spec for spec in canonical.states}
        self.nodes: list[NodeProto] = []

    def run(self) -> onnx.ModelProto:
        graph = self.model.graph
        states = {name for spec in self.states.values() for name in (spec.input, spec.output)}
        for value in (*graph.input, *graph.output):
            if value.name in states:
                value.type.tensor_type.elem_type = TensorProto.INT8
        old = list(graph.node)
        for node in old:
            layer, _, part = node.name.rpartition(".self_attn.")
            layer = layer.removeprefix("layers.")
            kept = NodeProto()
            kept.CopyFrom(node)
            new = [name for name in node.output if name in self.states]
            kept.output[:] = [f"{name}.float" if name in new else name for name in node.output]
            self.nodes.append(kept)
            for name in new:
                self.quantise(name)
            if part == "query":
                scale, _ = self.steps(f"past_key.{layer}")
                by = self.constant(f"past_key.{layer}.by_query", scale[:, None])
                self.node("Mul", [self.renamed(kept, "plain"), by], node)
            elif part in ("key", "value"):
                self.node("Cast", [self.renamed(kept, "codes")], node, to=TensorProto.FLOAT)
            elif part == "context":
                scale, middle = self.steps(f"past_value.{layer}")
                by = self.constant(f"past_value.{layer}.by_context", scale[:, None])
                scaled = self.node("Mul", [self.renamed(kept, "of_codes"), by], f"{node.name}.scaled")
                self.node(
                    "Add", [scaled, self.constant(f"past_value.{layer}.middles", middle[:, None])], node
                )
        del graph.node[:]
        graph.node.extend(self.nodes)
        return self.model

    def renamed(self, node: NodeProto, end: str) -> str:
        """Another name for a node and its output, which another node is to make; returns it."""
        node.name = node.output[0] = f"{node.output[0]}.{end}"
        return node.name

    def steps(self, state: str) -> tuple[Array, Array]:
        """Scale and middle, f32 [heads, size]."""
        low, high = self.ranges[state]
        return np.maximum((high - low) / (2 * LEVELS), 1e-8), (high + low) / 2

    def quantise(self, output: str) -> None:
        """output.float f32 -> output i8, [length, rows, heads, size]."""
        state = self.states[output].input
        scale, middle = self.steps(state)
        flat = self.constant("const.0_0_-1", np.array([0, 0, -1]))
        whole = self.constant(f"const.0_0_{scale.shape[0]}_{scale.shape[1]}", np.array([0, 0, *scale.shape]))
        centred = self.node(
            "Sub", [f"{output}.float", self.constant(f"{state}.middle", middle)], f"{output}.centred"
        )
        codes = self.node("Reshape", [centred, flat], f"{output}.flat")
        scales = [
            self.constant(f"{state}.scale", scale.reshape(-1)),
            self.constant(f"{state}.zero", np.zeros(scale.size, np.int8)),
        ]
        codes = self.node("QuantizeLinear", [codes, *scales], f"{output}.codes", axis=2)
        self.node("Reshape", [codes, whole], output)

    def node(self, op: str, inputs: list[str], output: str | NodeProto, **attributes: Any) -> str:
        name = output if isinstance(output, str) else output.output[0]
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(self, name: str, value: Array) -> str:
        if name not in {init.name for init in self.model.graph.initializer}:
            self.weights[name] = value
            self.model.graph.initializer.append(initializer(name, value))
        return name
