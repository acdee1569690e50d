"""FP16: weights and tensors inside a graph are half precision, but for the nodes that need FP32."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from edgemt.errors import EdgemtError
from edgemt.export.graphs.graphset import Array, GraphSet, initializer, lazy

LARGEST = float(np.finfo(np.float16).max)
SUFFIX: dict[int, str] = {TensorProto.FLOAT: "single", TensorProto.FLOAT16: "half"}


def to_float16(
    graphs: GraphSet,
    single: Callable[[NodeProto], bool] = lambda node: False,
    halved: Collection[str] = (),
) -> GraphSet:
    """The same graphs in half precision.

    Nodes for which `single` is true compute in FP32. Inputs and outputs stay FP32, but for those in `halved`.
    A weight that is too large for FP16 raises EdgemtError when it is read.
    """
    graphs, single_weights = graphs.copy(), dict(graphs.weights)
    graphs.weights = {
        name: half(name, array) if array.dtype == np.float32 else array
        for name, array in graphs.weights.items()
    }
    for model in graphs.graphs.values():
        _Rewriter(model, graphs, single_weights, halved).run(single)
    return graphs


def half(name: str, array: Array) -> Array:
    """The array in FP16, made when it is read."""

    def load() -> Array:
        values = np.asarray(array)
        if np.abs(values).max(initial=0) > LARGEST:
            raise EdgemtError(f"FP16 cannot hold the weights in {name} (above 65504); export with --fp32")
        return values.astype(np.float16)

    return lazy(array.shape, np.float16, load)


class _Rewriter:
    """Gives every node its inputs in its own precision, and casts between two that differ."""

    def __init__(
        self, model: onnx.ModelProto, graphs: GraphSet, weights: dict[str, Array], halved: Collection[str]
    ) -> None:
        self.graph, self.graphs, self.weights, self.halved = model.graph, graphs, weights, halved
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self.floats = {
            value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self.constants = {init.name: init for init in model.graph.initializer}
        self.kinds: dict[str, int] = {}  # float tensors made so far
        self.nodes: list[NodeProto] = []

    def run(self, single: Callable[[NodeProto], bool]) -> None:
        outside = {
            value.name: TensorProto.FLOAT16 if value.name in self.halved else TensorProto.FLOAT
            for value in (*self.graph.input, *self.graph.output)
            if value.name in self.floats
        }
        for value in (*self.graph.input, *self.graph.output):
            if value.name in outside:
                value.type.tensor_type.elem_type = outside[value.name]
        self.kinds = {value.name: outside[value.name] for value in self.graph.input if value.name in outside}
        made_late = {value.name for value in self.graph.output}
        for node in self.graph.node:
            kind = TensorProto.FLOAT if single(node) else TensorProto.FLOAT16
            kept = NodeProto()
            kept.CopyFrom(node)
            kept.input[:] = [self.given(name, kind) for name in node.input]
            self.nodes.append(kept)
            for place, name in enumerate(node.output):
                if name in self.floats:
                    self.kinds[name] = outside[name] if name in made_late else kind
                    if self.kinds[name] != kind:  # another precision leaves the graph
                        kept.output[place] = f"{name}.{SUFFIX[kind]}"
                        self.cast(kept.output[place], name, self.kinds[name])
                        self.kinds[kept.output[place]] = kind
        del self.graph.node[:], self.graph.initializer[:]
        read = {name for node in self.nodes for name in node.input}
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(init for name, init in self.constants.items() if name in read)

    def given(self, name: str, kind: int) -> str:
        """The tensor in this precision."""
        other = f"{name}.{SUFFIX[kind]}"
        if name in self.weights and self.weights[name].dtype == np.float32:
            if kind == TensorProto.FLOAT16:
                self.constants[name] = initializer(name, self.graphs.weights[name])
                return name
            self.graphs.weights[other] = self.weights[name]
            self.constants[other] = initializer(other, self.weights[name])
            return other
        if name not in self.kinds or self.kinds[name] == kind:
            return name
        if other not in self.kinds:
            self.cast(name, other, kind)
            self.kinds[other] = kind
        return other

    def cast(self, name: str, to: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [name], [to], f"{to}.cast", to=kind))
