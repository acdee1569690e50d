"""Weights in blocks of few bits, activations as they are: ONNX Runtime's MatMulNBits.

A block of a column has one FP32 scale and no zero point: value = scale · (q - 2^(bits - 1)). ONNX Runtime
quantises the activations of a block to 8 bits as it goes (accuracy level 4; level 0 takes ten times as long).
The head and the embedding are one copy of 8 bits where they are tied; an embedding alone has a scale a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgemt.export.graphs.graphset import Array, GraphSet, constant_matmuls, initializer

MICROSOFT = "com.microsoft"
LEVEL = 4  # 8-bit integer products
TABLE_BITS = 8  # of embedding and head
EMBEDDING = "embed_tokens.weight"
CANDIDATES = np.linspace(0.85, 1.15, 7, dtype=np.float32)  # of a block's full scale
ROWS = 256


class Blocks(NamedTuple):
    """A weight [K, N] in blocks along K, as MatMulNBits takes it."""

    packed: NDArray[np.uint8]  # [N, blocks, block · bits / 8], two 4-bit values a byte, the earlier one low
    scales: NDArray[np.float32]  # [N, blocks]


# (weight [N, K], bits, block) -> Blocks. `nearest` knows the weight only; others know the activations.
Rounding = Callable[[str, Array, int, int], Blocks]


def nearest(name: str, weight: Array, bits: int, block: int) -> Blocks:
    """Round to nearest; a block of 4 bits gets the scale of least squared error among a few."""
    parts = [
        _nearest(weight[start : start + ROWS], bits, block) for start in range(0, len(weight), ROWS)
    ]  # a few rows at a time stay in the cache
    return Blocks(*(np.concatenate(side) for side in zip(*parts, strict=True)))


def _nearest(weight: Array, bits: int, block: int) -> Blocks:
    blocks = in_blocks(weight, block)
    half = 1 << (bits - 1)
    at = np.abs(blocks).argmax(-1, keepdims=True)
    # The extreme is -half, which has one step more than the other side.
    full: NDArray[np.float32] = np.take_along_axis(blocks, at, -1) * np.float32(-1 / half)
    full[full == 0] = 1
    best: NDArray[np.float32] = full.copy()
    least = np.full_like(full, np.inf)
    for factor in CANDIDATES if bits < 8 else ():
        scale = full * factor
        error = np.clip(np.rint(blocks / scale), -half, half - 1) * scale - blocks
        squared = np.einsum("nbk,nbk->nb", error, error)[..., None]
        better = squared < least
        np.copyto(best, scale, where=better)
        np.copyto(least, squared, where=better)
    values = np.clip(np.rint(blocks / best), -half, half - 1)
    return Blocks(pack(values, bits), best[..., 0])


def in_blocks(weight: Array, block: int) -> Array:
    """[N, K] -> [N, blocks, block], zeros behind."""
    rows, columns = weight.shape
    padded = np.zeros((rows, -(-columns // block) * block), np.float32)
    padded[:, :columns] = weight
    return padded.reshape(rows, -1, block)


def pack(values: Array, bits: int) -> NDArray[np.uint8]:
    """Whole numbers from -2^(bits - 1) on, [N, blocks, block] -> [N, blocks, block · bits / 8]."""
    q = (values + (1 << (bits - 1))).astype(np.uint8)
    return q if bits == 8 else (q[..., 0::2] | (q[..., 1::2] << 4)).astype(np.uint8)


def unpack(blocks: Blocks, bits: int, columns: int) -> Array:
    """The weight [N, K] that the blocks stand for."""
    q = blocks.packed
    if bits == 4:
        q = np.stack([q & 15, q >> 4], -1).reshape(*q.shape[:2], -1)
    values = (q.astype(np.float32) - (1 << (bits - 1))) * blocks.scales[..., None]
    return values.reshape(len(values), -1)[:, :columns]


def to_blocks(
    graphs: GraphSet,
    default: int,
    bits: Mapping[str, int] = {},
    block: int = 32,
    rounding: Rounding = nearest,
) -> GraphSet:
    """Graphs whose products by weights are MatMulNBits: of bits[node name], else of `default` bits."""
    graphs = graphs.copy()
    rewriter = _Rewriter(graphs, bits, default, block, rounding)
    for model in graphs.graphs.values():
        rewriter.rewrite(model)
    return graphs


class _Rewriter:
    """Quantises each weight once, whatever number of nodes and graphs read it."""

    def __init__(
        self, graphs: GraphSet, bits: Mapping[str, int], default: int, block: int, rounding: Rounding
    ) -> None:
        self.weights, self.bits, self.default, self.block = graphs.weights, bits, default, block
        self.rounding = rounding
        self.done: set[str] = set()

    def rewrite(self, model: onnx.ModelProto) -> None:
        products = list(constant_matmuls(model, self.weights))
        for node, name in products:
            transposed = node.input[1] != name  # a table [N, K] behind a Transpose: the head
            bits = TABLE_BITS if transposed else self.bits.get(node.name, self.default)
            rows, columns = self.weights[name].shape if transposed else self.weights[name].shape[::-1]
            self.quantise(name, bits, self.block, transposed)
            self.product(node, name, bits, rows, columns)
        tables = {name for node, name in products if name in self.done}
        for node in [node for node in model.graph.node if node.op_type == "Gather"]:
            name = node.input[0]
            if name in tables or name.endswith(EMBEDDING):
                self.quantise(name, TABLE_BITS, self.weights[name].shape[1], True)
                self.look_up(model, node, name)
        read = {name for node in model.graph.node for name in node.input}
        for node in [node for node in model.graph.node if node.op_type == "Transpose"]:
            if not read & set(node.output):  # the head reads its table as it is
                model.graph.node.remove(node)
        read = {name for node in model.graph.node for name in node.input}
        constants = {init.name: init for init in model.graph.initializer}
        constants |= {n: initializer(n, self.weights[n]) for n in read if n.endswith(("_blocks", "_scales"))}
        del model.graph.initializer[:]
        model.graph.initializer.extend(init for name, init in constants.items() if name in read)
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))

    def quantise(self, name: str, bits: int, block: int, transposed: bool) -> None:
        if name not in self.done:
            self.done.add(name)
            weight = np.asarray(self.weights[name])
            found = self.rounding(name, weight if transposed else weight.T, bits, block)
            self.weights[f"{name}_blocks"] = found.packed
            self.weights[f"{name}_scales"] = found.scales

    def product(self, node: onnx.NodeProto, name: str, bits: int, rows: int, columns: int) -> None:
        node.CopyFrom(
            helper.make_node(
                "MatMulNBits",
                [node.input[0], f"{name}_blocks", f"{name}_scales"],
                [node.output[0]],
                node.name,
                domain=MICROSOFT,
                K=columns,
                N=rows,
                bits=bits,
                block_size=self.block,
                accuracy_level=LEVEL,
            )
        )

    def look_up(self, model: onnx.ModelProto, node: onnx.NodeProto, name: str) -> None:
        """Rows of the table by id, as floats: from the blocks that the head reads too."""
        graph, out, at = model.graph, node.output[0], list(model.graph.node).index(node)
        half = initializer("const.half_table", np.array([1 << (TABLE_BITS - 1)], np.float32))
        whole = initializer("const.whole_rows", np.array([0, 0, self.weights[name].shape[1]], np.int64))
        last = initializer("const.last_axis", np.array([-1], np.int64))
        graph.initializer.extend([half, whole, last])
        steps = [
            ("Gather", [f"{name}_blocks", node.input[1]], f"{out}.blocks", {}),
            ("Cast", [f"{out}.blocks"], f"{out}.values", {"to": TensorProto.FLOAT}),
            ("Sub", [f"{out}.values", "const.half_table"], f"{out}.signed", {}),
            ("Gather", [f"{name}_scales", node.input[1]], f"{out}.scales", {}),
            ("Unsqueeze", [f"{out}.scales", "const.last_axis"], f"{out}.by_block", {}),
            ("Mul", [f"{out}.signed", f"{out}.by_block"], f"{out}.scaled", {}),
            ("Reshape", [f"{out}.scaled", "const.whole_rows"], out, {}),
        ]
        graph.node.remove(node)
        for place, (op, inputs, output, attributes) in enumerate(steps):
            graph.node.insert(at + place, helper.make_node(op, inputs, [output], output, **attributes))
