"""Graphs that share one weight table, a small builder for them, and how they are written to files.

In memory an initializer carries its shape and type only: the values are in `GraphSet.weights`, under the same
name, once for all graphs. On disk they are in one external-data file, aligned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import TensorProto, helper

from edgemt.manifest import Model
from edgemt.runtimes.protocol import StateSpec

OPSET = 18  # LayerNormalization (17), ReduceMean and Split as TVM Relax and OpenVINO import them
IR_VERSION = 10
WEIGHTS_FILE = "weights.bin"
INLINE_BYTES = 64  # smaller constants (shapes, scalars) stay in the graph: shape inference needs their values
ALIGNMENT = 64
Array = NDArray[Any]


class Lazy:
    """What `lazy` returns."""

    def __init__(self, shape: Sequence[int], dtype: DTypeLike, load: Callable[[], Array]) -> None:
        self.shape, self.dtype, self._load = tuple(shape), np.dtype(dtype), load

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        array = self._load()
        assert array.shape == self.shape and array.dtype == self.dtype
        return array if dtype is None else array.astype(dtype, copy=False)


def lazy(shape: Sequence[int], dtype: DTypeLike, load: Callable[[], Array]) -> Array:
    """An array whose values are read or computed whenever numpy needs them, and not kept.

    For the weights of models that are larger than memory. It has shape, dtype, size and nbytes, and numpy's
    functions take it; of an array's methods it has none.
    """
    return cast(Array, Lazy(shape, dtype, load))


@dataclass
class GraphSet:
    """ONNX graphs by role, and the values of their initializers by name."""

    graphs: dict[str, onnx.ModelProto]
    weights: dict[str, Array] = field(default_factory=dict)

    def copy(self) -> GraphSet:
        """Graphs that may be rewritten; the arrays are shared, for they are replaced and never changed."""
        graphs = {}
        for role, model in self.graphs.items():
            graphs[role] = onnx.ModelProto()
            graphs[role].CopyFrom(model)
        return GraphSet(graphs, dict(self.weights))

    def inputs(self, role: str) -> tuple[str, ...]:
        return tuple(value.name for value in self.graphs[role].graph.input)

    def outputs(self, role: str) -> tuple[str, ...]:
        return tuple(value.name for value in self.graphs[role].graph.output)

    def write(self, directory: Path) -> dict[str, str]:
        """Write `ROLE.onnx` and the weights that they use; return the file of each role."""
        used = {
            init.name
            for model in self.graphs.values()
            for init in model.graph.initializer
            if init.data_location == TensorProto.EXTERNAL
        }
        places: dict[str, tuple[int, int]] = {}
        with (directory / WEIGHTS_FILE).open("wb") as file:
            for name in sorted(used, key=lambda name: (-self.weights[name].nbytes, name)):
                places[name] = _append(file, self.weights[name])
        files = {}
        for role, model in self.graphs.items():
            placed = onnx.ModelProto()
            placed.CopyFrom(model)
            for init in placed.graph.initializer:
                if init.name in places:
                    _point(init, *places[init.name])
            files[role] = f"{role}.onnx"
            (directory / files[role]).write_bytes(placed.SerializeToString())
        return files


@dataclass(kw_only=True)
class Canonical(GraphSet):
    """The canonical graphs of one model, with what the manifest says of its state and its ids."""

    states: list[StateSpec]
    model: Model
    features: dict[str, bool]


class Layer(NamedTuple):
    """One row of the bundle's layer table: a node that reads weights, and the bytes that they take."""

    name: str
    graph: str
    op: str
    precision: str
    bytes: int
    activations: str = ""  # of a product in INT8: "static", "rows" or "blocks" (see targets/)


def _append(file: BinaryIO, array: Array) -> tuple[int, int]:
    """Write an array behind what is there, aligned; return its place. Nothing of it stays in memory."""
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    start, data = file.tell(), np.ascontiguousarray(array)
    data.tofile(file)
    return start, data.nbytes


def _point(init: TensorProto, offset: int, length: int) -> None:
    del init.external_data[:]
    init.data_location = TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(length))):
        init.external_data.add(key=key, value=value)


class Builder:
    """Writes one graph node by node. Every node is named after its first output, a module path."""

    def __init__(self, role: str, weights: dict[str, Array]) -> None:
        self.role = role
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> str:
        self.inputs.append(_value(name, dtype, shape))
        return name

    def output(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> None:
        self.outputs.append(_value(name, dtype, shape))

    def weight(self, name: str, array: Array) -> str:
        """A named initializer; a name already in the table is the same weight, used by another graph too."""
        array = self.weights.setdefault(name, array)
        self.initializers[name] = initializer(name, array)
        return name

    def ints(self, values: Sequence[int]) -> str:
        """A constant int64 vector (a shape, axes), named by its value and so shared."""
        name = "const." + "_".join(str(value) for value in values)
        self.initializers[name] = initializer(name, np.array(values, np.int64))
        return name

    def node(self, op: str, inputs: Sequence[str], *outputs: str, domain: str = "", **attributes: Any) -> str:
        """Append a node; return its first output."""
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, self.role, self.inputs, self.outputs, initializer=list(self.initializers.values())
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="edgemt",
        )


def initializer(name: str, array: Array) -> TensorProto:
    """An initializer of the array's shape and type; with its values only if they are few (see GraphSet)."""
    if array.nbytes <= INLINE_BYTES:
        return onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
    tensor = TensorProto(
        name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=list(array.shape)
    )
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def _value(name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def constant_matmuls(
    model: onnx.ModelProto, weights: Mapping[str, Array]
) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Each MatMul by a weight, and that weight's name; a tied embedding stands behind a Transpose."""
    transposed = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Transpose" and node.input[0] in weights
    }
    for node in model.graph.node:
        if node.op_type == "MatMul":
            name = transposed.get(node.input[1], node.input[1])
            if name in weights:
                yield node, name
