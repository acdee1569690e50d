"""The step graph over whole texts, from one product by a weight to the next.

Attention looks back only, so a text with its translation behind it, in one run, is what prefill and decoding
compute (teacher forcing). The graph is cut in front of every such product, and a piece runs for all texts
before the next one begins. In memory are then the weights of one piece and, of each text, what later pieces
read: a hidden state a token, and the input of the next product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from edgemt.export.graphs.graphset import OPSET, Array, GraphSet, constant_matmuls
from edgemt.runtimes.ort_session import BARRED

Values = dict[str, Array]


class Product(NamedTuple):
    """A product by a weight [K, N]: its node, the weight and the activation that it takes."""

    node: str
    weight: str
    input: str


# (product, its input [tokens, K] of each text) -> the weight [K, N] to go on with, None: its own.
Visit = Callable[[Product, list[Array]], Array | None]


@dataclass(frozen=True)
class Piece:
    """Nodes of the graph from one cut to the next."""

    nodes: list[onnx.NodeProto]
    inputs: list[str]  # made by earlier pieces, or inputs of the graph
    weights: list[str]
    outputs: list[str]  # what later pieces read
    product: Product | None  # the first node, if that is a product by a weight as it is stored


class Layerwise:
    """One pass of the step graph `graphs` over `texts` (token ids). It can be made once only."""

    def __init__(self, graphs: GraphSet, texts: Sequence[Sequence[int]], threads: int = 1) -> None:
        self.weights, self.threads = graphs.weights, threads
        self.model = graphs.graphs["step"]
        self.small = {init.name: init for init in self.model.graph.initializer}
        self.texts = [feeds(self.model, text) for text in texts]
        *self.pieces, self.head = cut(self.model, graphs)

    def run(self, visit: Visit = lambda product, inputs: None) -> None:
        """All layers. `visit` sees each product by a weight, the head's excepted, in the graph's order."""
        for piece in self.pieces:
            weight, product = None, piece.product
            if product is not None:
                inputs = [text[product.input] for text in self.texts]
                weight = visit(product, [array.reshape(-1, array.shape[-1]) for array in inputs])
            replaced = {} if product is None or weight is None else {product.weight: weight}
            for text, found in zip(self.texts, self.results(piece, replaced), strict=True):
                kept = {**text, **found}
                later = self.read_behind(piece)
                text.clear()
                text.update((name, array) for name, array in kept.items() if name in later)

    def logits(self) -> Iterator[Array]:
        """After `run`: the logits [tokens, V] of each text."""
        for (found,) in map(dict.values, self.results(self.head, {})):
            yield found[0]

    def read_behind(self, piece: Piece) -> set[str]:
        pieces = [*self.pieces, self.head]
        return {name for other in pieces[pieces.index(piece) + 1 :] for name in other.inputs}

    def results(self, piece: Piece, replaced: Values) -> Iterator[Values]:
        """The outputs of a piece for each text, its weights loaded while that takes."""
        weights = {
            name: np.ascontiguousarray(replaced.get(name, self.weights.get(name))) for name in piece.weights
        }
        session = self.session(piece, {**self.texts[0], **weights})
        for text in self.texts:
            given = weights | {name: text[name] for name in piece.inputs}
            found = [np.asarray(value) for value in session.run(piece.outputs, given)]
            yield dict(zip(piece.outputs, found, strict=True))

    def session(self, piece: Piece, values: Values) -> ort.InferenceSession:
        read = {name for node in piece.nodes for name in node.input}
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[name].dtype), None)
            for name in (*piece.inputs, *piece.weights)
        ]
        constants = [init for name, init in self.small.items() if name in read - set(piece.weights)]
        outputs = [onnx.ValueInfoProto(name=name) for name in piece.outputs]
        graph = helper.make_graph(piece.nodes, "piece", inputs, outputs, initializer=constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=self.model.ir_version
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = options.enable_cpu_mem_arena = False  # what is done with is given back
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(model: onnx.ModelProto, text: Sequence[int]) -> Values:
    """The inputs of the step graph for one text without a past, its answers wanted everywhere."""
    length = len(text)
    given: Values = {
        "input_ids": np.array([text], np.int32),
        "position_ids": np.arange(length, dtype=np.int32)[None],
        "wanted": np.arange(length, dtype=np.int32)[None],
        "self_bias": np.triu(np.full((length, length), BARRED, np.float32), 1)[None, None],
    }
    for value in model.graph.input:
        if value.name.startswith("past_"):
            _, _, heads, size = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
            given[value.name] = np.zeros((0, 1, heads, size), np.float32)
    return given


def cut(model: onnx.ModelProto, graphs: GraphSet) -> list[Piece]:
    """The graph in pieces, each but the first beginning with a product by a weight; the last is the head."""
    large = {init.name for init in model.graph.initializer if init.data_location == init.EXTERNAL}
    constant = {init.name for init in model.graph.initializer}
    products = {node.name: weight for node, weight in constant_matmuls(model, graphs.weights)}
    turned = {  # the head's table, transposed when it is needed
        node.output[0]: node for node in model.graph.node if all(name in constant for name in node.input)
    }
    groups: list[list[onnx.NodeProto]] = [[]]
    for node in model.graph.node:
        if node.name in products:
            groups.append([])
        groups[-1] += [turned[name] for name in node.input if name in turned]
        if node.output[0] not in turned:
            groups[-1].append(node)
    pieces: list[Piece] = []
    later = {"logits"}
    for nodes in reversed(groups):
        read = list(dict.fromkeys(name for node in nodes for name in node.input))
        made = {name for node in nodes for name in node.output}
        first = nodes[0]
        straight = first.name in products and first.input[1] == products[first.name]
        inputs = [name for name in read if name not in made | constant]
        pieces.append(
            Piece(
                nodes,
                inputs,
                [name for name in read if name in large],
                [name for name in dict.fromkeys(n for node in nodes for n in node.output) if name in later],
                Product(first.name, products[first.name], first.input[0]) if straight else None,
            )
        )
        later |= set(inputs)
    return pieces[::-1]
