"""Weights in blocks of few bits, activations as they are: ONNX Runtime's MatMulNBits.

A block of a column has one scale and no zero point: value = scale · (q - 2^(bits - 1)). Scales are FP16 in
the file; MatMulNBits wants them in its activations' type, so a Cast stands between, which ONNX Runtime folds
when it loads the graph. It quantises the activations of a block to 8 bits as it goes (accuracy level 4;
level 0 takes ten times as long). The head and the embedding are one copy of 8 bits where they are tied; an
embedding alone has a scale a row.

Beside 4-bit weights in large blocks, all logits come from a head of 4 bits, and those of the SHORTLIST best
once more from the rows of 8: of a vocabulary of 150,000 that is half of what a token of the answer reads for
its head, and which token is best is decided by 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgemt.export.graphs.graphset import Array, GraphSet, constant_matmuls, initializer

MICROSOFT = "com.microsoft"
BLOCK = 32  # along K
# Where all weights have 8 bits: a scale for 128 costs no accuracy, and took .73 of the time of one for 32
# (one row by [1536, 8960]; onnxruntime 1.28, AVX512-VNNI). Beside 4-bit weights in blocks of 32 they
# have 32 too: with larger blocks either kernel gives one row other last bits than several, which no draft
# survives.
BLOCK8 = 128
# Where nothing else is asked for. Blocks of 32 took 1.6 times as long for a token of a 1.5B model (x86 with
# VNNI), and on a Cortex-A76 1.24 times the instructions; they were 2 % nearer to FP32 (docs/hy-mt.md).
BLOCK4 = 128
LEVEL = 4  # 8-bit integer products
TABLE_BITS = 8  # of embedding and head
EMBEDDING = "embed_tokens.weight"
SHORTLIST = 64  # a token that 4 bits see behind so many others is not the best
COARSE = "coarse"  # of the names of the head's 4 bits
FACTORS = np.linspace(0.85, 1.15, 7, dtype=np.float32)  # of a block's full scale: those tried at 4 bits
ROWS = 256
LARGEST = np.finfo(np.float16).max


class Blocks(NamedTuple):
    """A weight [K, N] in blocks along K, as MatMulNBits takes it."""

    packed: NDArray[np.uint8]  # [N, blocks, block · bits / 8], two 4-bit values a byte, the earlier one low
    scales: NDArray[np.float16]  # [N, blocks]


Step = tuple[str, list[str], list[str], dict[str, Any]]  # operator, inputs, outputs, attributes

# (name, what loads the weight [N, K], bits, block) -> Blocks. `nearest` knows the weight only.
Rounding = Callable[[str, Callable[[], Array], int, int], Blocks]


def block_of(columns: int, bits: int, block: int) -> int:
    """The size of blocks along `columns` where those of 4 bits have `block`.

    Halved until whole ones fill the columns, down to BLOCK.
    """
    block = BLOCK8 if bits == 8 and block != BLOCK else block
    while block > BLOCK and columns % block:
        block //= 2
    return block


def nearest(name: str, load: Callable[[], Array], bits: int, block: int) -> Blocks:
    """Round to nearest; a block of 4 bits gets the scale of least squared error among a few."""
    weight = load()
    parts = []
    for start in range(0, len(weight), ROWS):  # a few rows at a time stay in the cache
        blocks = in_blocks(weight[start : start + ROWS], block)
        scales = fitted(blocks, bits)
        half, steps = 1 << (bits - 1), scales.astype(np.float32)[..., None]
        parts.append((pack(np.clip(np.rint(blocks / steps), -half, half - 1), bits), scales))
    return Blocks(*(np.concatenate(side) for side in zip(*parts, strict=True)))


def fitted(blocks: Array, bits: int, importance: Array | None = None, axis: int = -1) -> NDArray[np.float16]:
    """The scale of each block, which lies along `axis`, of least squared error.

    `importance` [block] weighs the squares.
    """
    half = 1 << (bits - 1)
    high, low = blocks.max(axis, keepdims=True), blocks.min(axis, keepdims=True)
    # The extreme is -half, which has one step more than the other side.
    full = np.where(high > -low, high, low) * np.float32(-1 / half)
    best = _half_precision(full)
    least = np.full_like(full, np.inf)
    share = (
        None
        if importance is None
        else np.expand_dims(importance, [i for i in range(blocks.ndim) if i != axis % blocks.ndim])
    )
    for factor in FACTORS if bits < 8 else ():
        scale = _half_precision(full * factor)
        error = blocks / scale
        np.clip(np.rint(error, out=error), -half, half - 1, out=error)
        error *= scale
        error -= blocks
        error *= error
        if share is not None:
            error *= share
        squared = error.sum(axis, keepdims=True)
        better = squared < least
        np.copyto(best, scale, where=better)
        np.copyto(least, squared, where=better)
    return best.squeeze(axis).astype(np.float16)


def _half_precision(scales: Array) -> Array:
    """FP32 values that are FP16 ones, and none of them zero."""
    near = np.clip(scales, -LARGEST, LARGEST).astype(np.float16).astype(np.float32)
    near[near == 0] = 1
    return near


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
    values = (q.astype(np.float32) - (1 << (bits - 1))) * blocks.scales.astype(np.float32)[..., None]
    return values.reshape(len(values), -1)[:, :columns]


def to_blocks(
    graphs: GraphSet,
    default: int,
    bits: Mapping[str, int] = {},
    block: int = BLOCK,
    rounding: Rounding = nearest,
) -> GraphSet:
    """Graphs whose products by weights are MatMulNBits: of bits[node name], else of `default` bits."""
    graphs = graphs.copy()
    rewriter = _Rewriter(graphs, bits, default, block, rounding)
    for model in graphs.graphs.values():
        rewriter.rewrite(model)
    return graphs


def bits_of(model: onnx.ModelProto) -> dict[str, int]:
    """The bits of every weight in blocks, by the name of its blocks."""
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            found[node.input[1]] = next(each.i for each in node.attribute if each.name == "bits")
        elif node.op_type == "Gather" and node.input[0].endswith("_blocks"):
            found[node.input[0]] = TABLE_BITS
    return found


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
            block = block_of(columns, bits, self.block)
            self.quantise(name, name, bits, block, transposed)
            if transposed and self.shortlists(rows):
                rough, bits = f"{name}.{COARSE}", self.default
                block = block_of(columns, bits, self.block)
                self.quantise(name, rough, bits, block, transposed)
                self.product(model, node, rough, bits, block, rows, columns)
                self.refine(model, node, name)
            else:
                self.product(model, node, name, bits, block, rows, columns)
        tables = {name for node, name in products if name in self.done}
        for node in [node for node in model.graph.node if node.op_type == "Gather"]:
            name = node.input[0]
            if name in tables or name.endswith(EMBEDDING):
                self.quantise(name, name, TABLE_BITS, self.weights[name].shape[1], True)
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

    def shortlists(self, vocabulary: int) -> bool:
        """Blocks of BLOCK are for drafts and small bundles, whose head there is in 8 bits alone."""
        return self.default < TABLE_BITS and self.block > BLOCK and vocabulary > SHORTLIST

    def quantise(self, name: str, stored: str, bits: int, block: int, transposed: bool) -> None:
        """The weight `name`, kept as `stored`."""
        if stored not in self.done:
            self.done.add(stored)
            weight = self.weights[name]
            found = self.rounding(
                stored, lambda: np.asarray(weight) if transposed else np.asarray(weight).T, bits, block
            )
            self.weights[f"{stored}_blocks"] = found.packed
            self.weights[f"{stored}_scales"] = found.scales

    def product(
        self,
        model: onnx.ModelProto,
        node: onnx.NodeProto,
        name: str,
        bits: int,
        block: int,
        rows: int,
        columns: int,
    ) -> None:
        scales = f"{name}_scales.float"
        if not any(scales in other.output for other in model.graph.node):
            cast = helper.make_node("Cast", [f"{name}_scales"], [scales], scales, to=TensorProto.FLOAT)
            model.graph.node.insert(0, cast)
        node.CopyFrom(
            helper.make_node(
                "MatMulNBits",
                [node.input[0], f"{name}_blocks", scales],
                [node.output[0]],
                node.name,
                domain=MICROSOFT,
                K=columns,
                N=rows,
                bits=bits,
                block_size=block,
                accuracy_level=LEVEL,
            )
        )

    def refine(self, model: onnx.ModelProto, node: onnx.NodeProto, name: str) -> None:
        """The best of a head's logits once more, from the rows of 8 bits: [R, wanted, V], V ids."""
        graph, out, x = model.graph, node.output[0], node.input[0]
        rough, short = f"{out}.{COARSE}", f"{out}.short"
        node.output[0] = rough
        many = initializer("const.shortlist", np.array([SHORTLIST], np.int64))
        graph.initializer.append(many)
        steps: list[Step] = [
            ("TopK", [rough, many.name], [f"{short}.values", f"{short}.ids"], {"axis": -1, "sorted": 0}),
            *self.rows(graph, name, f"{short}.ids", f"{short}.rows", [0, 0, SHORTLIST]),
            ("Unsqueeze", [x, "const.last_axis"], [f"{short}.column"], {}),
            ("MatMul", [f"{short}.rows", f"{short}.column"], [f"{short}.products"], {}),
            ("Squeeze", [f"{short}.products", "const.last_axis"], [f"{short}.logits"], {}),
            ("ScatterElements", [rough, f"{short}.ids", f"{short}.logits"], [out], {"axis": -1}),
        ]
        insert(graph, list(graph.node).index(node) + 1, steps)

    def look_up(self, model: onnx.ModelProto, node: onnx.NodeProto, name: str) -> None:
        """Rows of the table by id, as floats: from the blocks that the head reads too."""
        graph, at = model.graph, list(model.graph.node).index(node)
        steps = self.rows(graph, name, node.input[1], node.output[0], [0, 0])
        graph.node.remove(node)
        insert(graph, at, steps)

    def rows(self, graph: onnx.GraphProto, name: str, ids: str, out: str, lead: Sequence[int]) -> list[Step]:
        """Nodes that make `out` [*lead, K] of the rows `ids` of a table of 8 bits [V, K]."""
        shape = [*lead, self.weights[name].shape[1]]
        whole = initializer(f"const.shape.{out}", np.array(shape, np.int64))
        half = initializer("const.half_table", np.array([1 << (TABLE_BITS - 1)], np.float32))
        graph.initializer.extend([half, whole, initializer("const.last_axis", np.array([-1], np.int64))])
        return [
            ("Gather", [f"{name}_blocks", ids], [f"{out}.blocks"], {}),
            ("Cast", [f"{out}.blocks"], [f"{out}.values"], {"to": TensorProto.FLOAT}),
            ("Sub", [f"{out}.values", "const.half_table"], [f"{out}.signed"], {}),
            ("Gather", [f"{name}_scales", ids], [f"{out}.halves"], {}),
            ("Cast", [f"{out}.halves"], [f"{out}.scales"], {"to": TensorProto.FLOAT}),
            ("Unsqueeze", [f"{out}.scales", "const.last_axis"], [f"{out}.by_block"], {}),
            ("Mul", [f"{out}.signed", f"{out}.by_block"], [f"{out}.scaled"], {}),
            ("Reshape", [f"{out}.scaled", whole.name], [out], {}),
        ]


def insert(graph: onnx.GraphProto, at: int, steps: Sequence[Step]) -> None:
    """Nodes before that at place `at`."""
    for place, (op, inputs, outputs, attributes) in enumerate(steps):
        graph.node.insert(
            at + place, helper.make_node(op, inputs, outputs, f"{outputs[0]}.{op}", **attributes)
        )
