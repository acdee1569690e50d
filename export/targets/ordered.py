"""A softmax whose sum does not depend on how many barred slots stand behind those that count.

ONNX Runtime's Softmax on ARM sums a row in an order that depends on its length, so a step of several tokens,
whose rows are longer, differs from steps of one in the last bit; the 8-bit rounding of activations behind it
makes more of that, and drafts could not be verified. A product adds one term after the other: what is barred
adds exact zeros at the end. The division then comes behind the product by the values.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgemt.export.graphs.graphset import GraphSet

ROLE, SLOTS = "step", "self_bias"  # [.., past + width] of this input: one slot of each row's scores
ONES = "ordered.ones"  # [slots, COLUMNS]
COLUMNS = 16  # all alike: for a product with one column ONNX Runtime on x86 has kernels that differ by rows


def order_sums(graphs: GraphSet) -> GraphSet:
    """The graphs with every Softmax of the step that a MatMul alone reads written out."""
    graphs = graphs.copy()
    graph = graphs.graphs[ROLE].graph
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[NodeProto] = list(ones())
    divided: dict[str, str] = {}  # output of a product by values -> the sums that it is divided by
    for node in graph.node:
        behind = readers.get(node.output[0], []) if node.op_type == "Softmax" else []
        if len(behind) == 1 and behind[0].op_type == "MatMul" and behind[0].input[0] == node.output[0]:
            nodes += exponentials(node)
            divided[behind[0].output[0]] = f"{node.output[0]}.sum"
        elif node.output[0] in divided:
            output, name = node.output[0], f"{node.output[0]}.undivided"
            product = NodeProto()
            product.CopyFrom(node)
            product.name = product.output[0] = name
            nodes += [product, helper.make_node("Div", [name, divided[output]], [output], output)]
        else:
            nodes.append(node)
    if not divided:
        return graphs
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([-1], np.int64), "ordered.last"),
            numpy_helper.from_array(np.array([COLUMNS], np.int64), "ordered.columns"),
            numpy_helper.from_array(np.array([0], np.int64), "ordered.zero"),
            numpy_helper.from_array(np.array([1], np.int64), "ordered.one"),
        ]
    )
    return graphs


def ones() -> Iterator[NodeProto]:
    yield helper.make_node("Shape", [SLOTS], ["ordered.slots"], "ordered.slots", start=-1)
    yield helper.make_node(
        "Concat", ["ordered.slots", "ordered.columns"], ["ordered.shape"], "ordered.shape", axis=0
    )
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    yield helper.make_node("ConstantOfShape", ["ordered.shape"], [ONES], ONES, value=one)


def exponentials(softmax: NodeProto) -> Iterator[NodeProto]:
    """exp(x - max) under the name of the softmax, and its sums."""
    scores, output = softmax.input[0], softmax.output[0]
    largest, shifted = f"{output}.largest", f"{output}.shifted"
    yield helper.make_node("ReduceMax", [scores, "ordered.last"], [largest], largest, keepdims=1)
    yield helper.make_node("Sub", [scores, largest], [shifted], shifted)
    yield helper.make_node("Exp", [shifted], [output], output)
    sums, first = f"{output}.sums", ["ordered.zero", "ordered.one", "ordered.last"]
    yield helper.make_node("MatMul", [output, ONES], [sums], sums)
    yield helper.make_node("Slice", [sums, *first], [f"{output}.sum"], f"{output}.sum")
