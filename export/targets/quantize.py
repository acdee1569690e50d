"""INT8 on a canonical graph: weights per output channel; activations by calibrated ranges (QDQ), or dynamic.

Written for what canonical graphs hold, products by a weight and embedding look-ups, rather than with
onnxruntime.quantization: that stores a tied embedding twice, once an axis, and gives the look-up one
scale for the whole table. Here there is one INT8 copy with a scale a row, which the look-up reads and the
head takes behind a Transpose (ONNX Runtime folds it when it loads the graph). Attention products and
everything else stay FP32, and outputs of products are not quantised: quantising them only added error.

A static product may take its activations by rows: each row is divided by its largest magnitude before the
range, which is then -1 to 1, and the product's row is multiplied by it. DynamicQuantizeLinear would give one
scale to all tokens of a prompt, and its first token may be a thousand times the others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, helper

from edgemt.calibration.quantspec import affine
from edgemt.errors import EdgemtError
from edgemt.export.graphs.graphset import Array, GraphSet, constant_matmuls, initializer

# In a step, from so many columns on, the weights' scales are a Mul of their own behind a product whose weight
# scale is 1. ONNX Runtime copies a scale a column one by one at every call, 30 instructions each: 300,000 of
# the 895,000 that the head of a step took on a Cortex-A76 (10,000 columns, 160,000 dot products); the Mul
# takes 24,000. From 256 columns on it would be 1 % fewer instructions there, and slower on x86. An encoder
# has one call for all its rows.
WIDE = 512

Ranges = Mapping[str, tuple[float, float]]  # tensor -> (low, high)


class WeightType(NamedTuple):
    """How weights are stored: `zero` is the code of 0; `paired` keeps |w[2k]| + |w[2k+1]| within 128."""

    dtype: type[np.generic]
    zero: int
    paired: bool


S8 = WeightType(np.int8, 0, paired=False)
S8_PAIRED = WeightType(np.int8, 0, paired=True)
U8 = WeightType(np.uint8, 128, paired=False)


def quantize_weight(weight: Array, kind: WeightType, axis: int) -> tuple[Array, Array]:
    """Symmetric codes of a matrix, and a positive f32 scale for each index of `axis`."""
    magnitude = np.abs(np.moveaxis(weight, axis, 0))
    if kind.paired:  # what an x86 CPU without VNNI adds in 16 bits, which then do not overflow
        magnitude = np.add.reduceat(magnitude, np.arange(0, magnitude.shape[1], 2), axis=1)
    scale = (np.maximum(magnitude.max(axis=1), 1e-8) / 127).astype(np.float32)
    codes = np.rint(weight / np.expand_dims(scale, 1 - axis)).clip(-127, 127) + kind.zero
    return codes.astype(kind.dtype), scale


def activations(graphs: GraphSet) -> dict[str, list[str]]:
    """The tensors of each graph whose ranges static quantisation needs: what enters a product by a weight."""
    return {
        role: sorted({node.input[0] for node, _ in constant_matmuls(model, graphs.weights)})
        for role, model in graphs.graphs.items()
    }


class Quantizer:
    """Rewrites one set of graphs. `ranges` (tensor -> (low, high)) makes it static, None dynamic."""

    def __init__(
        self,
        graphs: GraphSet,
        weight_type: WeightType,
        ranges: Ranges | None = None,
        by_rows: Collection[str] = (),
    ) -> None:
        """`by_rows`: the products of a static graph that take each row by its own magnitude."""
        self.graphs, self.kind, self.ranges, self.by_rows = graphs.copy(), weight_type, ranges, by_rows
        # A table that is looked up has a scale a row, and so a column of the head that shares it.
        self.tables = {
            node.input[0]
            for model in graphs.graphs.values()
            for node in model.graph.node
            if node.op_type == "Gather"
            and node.input[1] == "input_ids"
            and graphs.weights[node.input[0]].dtype == np.float32  # and not in blocks already
        }
        self.model, self.wide = onnx.ModelProto(), math.inf
        self.nodes: list[NodeProto] = []

    def run(self) -> GraphSet:
        for role, model in self.graphs.graphs.items():
            self.model, self.wide = model, WIDE if role == "step" else math.inf
            products = {
                node.name: weight for node, weight in constant_matmuls(self.model, self.graphs.weights)
            }
            old, self.nodes = list(self.model.graph.node), []
            made = {node.output[0] for node in old if node.name in products}
            biases = {
                node.input[0]: node
                for node in old
                if node.op_type == "Add" and node.input[0] in made and node.input[1] in self.graphs.weights
            }
            written = {bias.name for bias in biases.values()}  # with their products
            for node in old:
                if node.name in products:
                    self.product(node, products[node.name], biases.get(node.output[0]))
                elif node.name in written:
                    continue
                elif node.op_type == "Gather" and node.input[0] in self.tables:
                    self.look_up(node)
                else:
                    self.nodes.append(node)
            self.drop_dead()
        return self.graphs

    def product(self, node: NodeProto, weight: str, bias: NodeProto | None) -> None:
        """A product by a weight, and the Add of its bias if there is one, as `node` and `bias` are named."""
        source, scale, zero = self.weight(weight, 0 if weight in self.tables else 1)
        if weight in self.tables:
            source = self.node("Transpose", [source], f"{weight}_transposed_quantized", perm=[1, 0])
        if node.name in self.by_rows:
            self.rows_product(node, source, scale)
            self.nodes.extend([bias] if bias else [])
            return
        if len(self.graphs.weights[scale]) < self.wide:
            self.codes_product(node.input[0], source, scale, zero, node.output[0], node.name)
            self.nodes.extend([bias] if bias else [])
            return
        unit, zero = self.constant("const.unit", np.float32(1)), f"const.zero_{self.kind.zero}"
        last = bias or node
        total = f"{node.name}.unscaled"
        self.codes_product(node.input[0], source, unit, zero, total, total)
        if bias:
            shifted = self.graphs.weights[bias.input[1]] / self.graphs.weights[scale]
            shift = self.constant(f"{bias.input[1]}_unscaled", shifted.astype(np.float32))
            total = self.node("Add", [total, shift], f"{bias.name}.unscaled")
        self.nodes.append(helper.make_node("Mul", [total, scale], list(last.output), last.name))

    def rows_product(self, node: NodeProto, codes: str, scale: str) -> None:
        """(x / m) by the codes, times their scale, times m: of each row of x its largest magnitude."""
        x = node.input[0]
        last, tiny = (
            self.constant("const.last", np.array([-1])),
            self.constant("const.tiny", np.float32(1e-12)),
        )
        size = self.node("ReduceMax", [self.node("Abs", [x], f"{x}.magnitudes"), last], f"{x}.largest")
        size = self.node("Max", [size, tiny], f"{x}.size")
        unit = self.node("Div", [x, size], f"{x}.by_rows")
        total, one = f"{node.name}.unscaled", self.constant("const.unit", np.float32(1))
        zero = f"const.zero_{self.kind.zero}"
        self.codes_product(unit, codes, one, zero, total, total, {unit: (-1.0, 1.0)})
        total = self.node("Mul", [total, scale], f"{node.name}.by_rows")
        self.nodes.append(helper.make_node("Mul", [total, size], list(node.output), node.name))

    def codes_product(
        self, x: str, codes: str, scale: str, zero: str, output: str, name: str, ranges: Ranges | None = None
    ) -> None:
        """x by the weight with these codes, scale (of all or of each column) and zero point."""
        ranges = ranges or self.ranges
        if ranges is not None:
            axis = {} if scale == "const.unit" else {"axis": 1}
            unpacked = self.node(
                "DequantizeLinear", [codes, scale, zero], f"{name}.weight_dequantized", **axis
            )
            product = [self.fake_quantized(x, ranges), unpacked]
            self.nodes.append(helper.make_node("MatMul", product, [output], name))
            return
        x_codes, x_scale, x_zero = self.dynamic(x)
        zeros = [zero] if self.kind.zero else []
        total = self.node("MatMulInteger", [x_codes, codes, x_zero, *zeros], f"{name}.integer")
        total = self.node("Cast", [total], f"{name}.cast", to=onnx.TensorProto.FLOAT)
        both = self.node("Mul", [x_scale, scale], f"{name}.scales")
        self.nodes.append(helper.make_node("Mul", [total, both], [output], name))

    def look_up(self, node: NodeProto) -> None:
        """Codes and scale of the rows asked for: the table itself is never unpacked."""
        table, ids = node.input
        codes, scale, _ = self.weight(table, 0)
        column = self.constant(f"{table}_scale_column", self.graphs.weights[scale][:, None])
        one = self.constant("const.unit", np.float32(1))
        rows = self.node("Gather", [codes, ids], f"{node.name}.codes")
        rows = self.node(
            "DequantizeLinear", [rows, one, f"const.zero_{self.kind.zero}"], f"{node.name}.centred"
        )
        scales = self.node("Gather", [column, ids], f"{node.name}.scales")
        self.nodes.append(helper.make_node("Mul", [rows, scales], list(node.output), node.name))

    def weight(self, name: str, axis: int) -> tuple[str, str, str]:
        """Names of codes, scales and zero point of a weight, quantised on first use."""
        codes, scale, zero = f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"
        if codes not in self.graphs.weights:
            values = quantize_weight(np.asarray(self.graphs.weights[name]), self.kind, axis)
            self.graphs.weights[codes], self.graphs.weights[scale] = values
        size = len(self.graphs.weights[scale])
        self.constant(codes, self.graphs.weights[codes])
        self.constant(scale, self.graphs.weights[scale])
        self.constant(zero, np.full(size, self.kind.zero, self.kind.dtype))
        self.constant(f"const.zero_{self.kind.zero}", np.array(self.kind.zero, self.kind.dtype))
        return codes, scale, zero

    def fake_quantized(self, name: str, ranges: Ranges) -> str:
        """The activation through U8 and back; one pair of nodes for all products that take it."""
        if name not in ranges:
            raise EdgemtError(f"the calibration has no range for {name}; calibrate this model again")
        scale, zero = affine(*ranges[name])
        pair = [
            self.constant(f"{name}_scale", np.float32(scale)),
            self.constant(f"{name}_zero_point", np.uint8(zero)),
        ]
        codes = self.node("QuantizeLinear", [name, *pair], f"{name}_quantized")
        return self.node("DequantizeLinear", [codes, *pair], f"{name}_dequantized")

    def dynamic(self, name: str) -> tuple[str, str, str]:
        names = (f"{name}_quantized", f"{name}_scale", f"{name}_zero_point")
        if not any(node.name == names[0] for node in self.nodes):
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [name], list(names), names[0]))
        return names

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        if not any(output in node.output for node in self.nodes):
            self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def constant(self, name: str, value: Array | np.generic) -> str:
        array = np.asarray(value)
        if array.nbytes > 64:
            array = self.graphs.weights.setdefault(name, array)
        if not any(init.name == name for init in self.model.graph.initializer):
            self.model.graph.initializer.append(initializer(name, array))
        return name

    def drop_dead(self) -> None:
        """Leave out what nothing reads any more: FP32 weights, the head's Transpose."""
        graph = self.model.graph
        outputs = {value.name for value in graph.output}
        read = outputs | {name for node in self.nodes for name in node.input}
        nodes = [node for node in self.nodes if read & set(node.output)]
        read = outputs | {name for node in nodes for name in node.input}
        kept = [init for init in graph.initializer if init.name in read]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(kept)
