"""ONNX Runtime: heads for search on the step graph, then FP32, FP16, static INT8 (QDQ) or dynamic INT8."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from onnx import TensorProto, helper

from edgemt.export.graphs.graphset import Canonical, GraphSet, Layer, constant_matmuls, initializer
from edgemt.export.targets import PLAIN, Calibrated, Lowered
from edgemt.export.targets.float16 import to_float16
from edgemt.export.targets.greedy import add_greedy
from edgemt.export.targets.ordered import order_sums
from edgemt.export.targets.quantize import S8_PAIRED, Quantizer, activations
from edgemt.export.targets.weight_only import BLOCK8, EMBEDDING, bits_of, to_blocks

__all__ = ["activations", "lower"]

SUPPRESSED = np.float32(-30000)  # within FP16

# Weights are signed: unsigned ones (exact on every x86 CPU) took 0.91 against 0.58 ms for an encoder of 25
# tokens on a CPU with VNNI, and as long in the step. What a CPU without VNNI would overflow is kept within 16
# bits by the scale, at no cost in time and almost none in accuracy (relative error of the logits of a random
# model .083 against .078; .112 with seven bits).
WEIGHTS = S8_PAIRED

# Of decoder-only models: a step of several tokens is to give what steps of one give, to the last bit.
EXACT = ("int8-static", "int8-blocks", "int4")


def lower(canonical: Canonical, precision: str, found: Calibrated = PLAIN) -> Lowered:
    """Lower to "fp32", "fp16", "int8-static" (takes ranges), "int8-dynamic", "int8-blocks" or "int4"."""
    graphs: GraphSet = canonical
    if precision == "fp16":
        graphs = to_float16(graphs)
    elif precision == "int8-static":
        some = {kind: {name for name, k in found.schemes.items() if k == kind} for kind in ("rows", "blocks")}
        graphs = some_to_blocks(graphs, some["blocks"])
        graphs = Quantizer(graphs, WEIGHTS, found.ranges, some["rows"]).run()
    elif precision == "int8-dynamic":
        graphs = Quantizer(graphs, WEIGHTS).run()
    elif precision == "int8-blocks":
        graphs = to_blocks(graphs, 8, block=BLOCK8)
    elif precision == "int4":
        graphs = to_blocks(graphs, 4, found.bits, found.block, found.rounding)
    if "encoder" not in graphs.graphs and precision in EXACT:
        graphs = order_sums(graphs)
    lowered = add_heads(graphs, canonical.model.suppress, canonical.model.vocab_size)
    if (
        precision != "fp16" and "encoder" in graphs.graphs
    ):  # half precision is for GPUs, and its graphs are full of casts
        lowered = add_greedy(lowered, canonical)
    table = layer_table(canonical, graphs, found.schemes if precision == "int8-static" else None)
    return Lowered(lowered, table)


def some_to_blocks(graphs: GraphSet, nodes: Collection[str]) -> GraphSet:
    """The graphs with the products `nodes` by weights in blocks of 8 bits, and with them the embeddings.

    An embedding that is tied to the head is one copy with it.
    """
    if not nodes:
        return graphs
    chosen = {
        name
        for model in graphs.graphs.values()
        for node, name in constant_matmuls(model, graphs.weights)
        if node.name in nodes
    }
    chosen |= {name for name in graphs.weights if name.endswith(EMBEDDING)}
    lowered = to_blocks(GraphSet(graphs.graphs, {name: graphs.weights[name] for name in chosen}), 8)
    return GraphSet(lowered.graphs, graphs.weights | lowered.weights)


def layer_table(
    canonical: Canonical, graphs: GraphSet, schemes: Mapping[str, str] | None = None
) -> list[Layer]:
    """A row for each node that reads weights: how they are stored, and their bytes without scales.

    `schemes`: of a static graph, how the products that are not static take their activations.
    """
    rows = []
    for role, model in canonical.graphs.items():
        stored = {init.name for init in graphs.graphs[role].graph.initializer}
        bits = bits_of(graphs.graphs[role])
        behind = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Transpose"}
        for node in model.graph.node:
            for name in (behind.get(name, name) for name in node.input):
                if node.op_type not in ("MatMul", "Gather") or name not in canonical.weights:
                    continue
                aliases = (name, f"{name}_quantized", f"{name}_blocks")
                kept = next(alias for alias in aliases if alias in stored)
                array = graphs.weights[kept]
                scheme = "" if schemes is None else schemes.get(node.name, "static")
                product = node.op_type == "MatMul"
                precision = f"int{bits[kept]}" if kept in bits else str(array.dtype)
                kind = Layer(node.name, role, node.op_type, precision, array.nbytes)
                rows.append(kind._replace(activations=scheme) if product else kind)
    return rows


def add_heads(graphs: GraphSet, suppress: list[int], vocab: int) -> GraphSet:
    """Give the step graph what search asks for: the best k ids and their log-probabilities.

    LogSoftmax and not a log-partition: ONNX Runtime's ReduceLogSumExp took a quarter of a step, and numpy's
    exp a quarter of a beam search's instructions on a Cortex-A76.
    """
    graphs = graphs.copy()
    bias = np.zeros(vocab, np.float32)
    bias[suppress] = SUPPRESSED
    graphs.weights["suppress"] = bias
    graph = graphs.graphs["step"].graph
    graph.input.append(helper.make_tensor_value_info("top_k", TensorProto.INT64, [1]))
    graph.initializer.append(initializer("suppress", bias))
    graph.node.extend(
        [
            helper.make_node("LogSoftmax", ["logits"], ["logp"], "logp", axis=-1),
            helper.make_node("Add", ["logp", "suppress"], ["candidates"], "candidates"),
            helper.make_node("TopK", ["candidates", "top_k"], ["top_values", "top_ids"], "top_k", axis=-1),
        ]
    )
    answers = "wanted" if "wanted" in graphs.inputs("step") else "width"
    graph.output.append(helper.make_tensor_value_info("logp", TensorProto.FLOAT, ["rows", answers, vocab]))
    for name, kind in (("top_values", TensorProto.FLOAT), ("top_ids", TensorProto.INT64)):
        graph.output.append(helper.make_tensor_value_info(name, kind, ["rows", answers, "k"]))
    return graphs
