"""FP16: weights and every tensor inside a graph are half precision; inputs and outputs stay FP32."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.facts import listing
from edgemt.export.graphs.graphset import GraphSet, initializer

LARGEST = float(np.finfo(np.float16).max)


def to_float16(graphs: GraphSet) -> GraphSet:
    """The same graphs in half precision. Raises EdgemtError if a weight is too large for it."""
    graphs = graphs.copy()
    large = [
        name for name, array in graphs.weights.items() if _is_float(array) and np.abs(array).max() > LARGEST
    ]
    if large:
        raise EdgemtError(
            f"FP16 cannot hold the weights in {listing(large)} (above 65504); export with --fp32"
        )
    graphs.weights = {
        name: array.astype(np.float16) if _is_float(array) else array
        for name, array in graphs.weights.items()
    }
    for model in graphs.graphs.values():
        graph = model.graph
        inputs = {
            value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        outputs = {
            value.name for value in graph.output if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        halves = [
            initializer(init.name, graphs.weights[init.name])
            for init in graph.initializer
            if init.name in graphs.weights
        ]
        others = [init for init in graph.initializer if init.name not in graphs.weights]
        nodes = [_cast(name, f"{name}.half", TensorProto.FLOAT16) for name in sorted(inputs)]
        for node in graph.node:
            renamed = NodeProto()
            renamed.CopyFrom(node)
            renamed.input[:] = [f"{name}.half" if name in inputs | outputs else name for name in node.input]
            renamed.output[:] = [f"{name}.half" if name in outputs else name for name in node.output]
            nodes.append(renamed)
        nodes += [_cast(f"{name}.half", name, TensorProto.FLOAT) for name in sorted(outputs)]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend([*halves, *others])
    return graphs


def _cast(source: str, output: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [output], f"{output}.cast", to=kind)


def _is_float(array: np.ndarray) -> bool:
    return array.dtype == np.float32
