"""Lowering to ONNX Runtime: everything is fused, one INT8 copy of a tied embedding, close to FP32."""

from __future__ import annotations

from pathlib import Path

import marian
import numpy as np
import onnx
import onnxruntime
import pytest

from edgemt.bundle import open_bundle
from edgemt.calibration.collect import collect
from edgemt.errors import EdgemtError, UsageError
from edgemt.export.checkpoints.read import read_checkpoint
from edgemt.export.targets import target
from edgemt.export.targets.quantize import S8, S8_PAIRED, U8, quantize_weight
from edgemt.runtimes import open_program
from edgemt.runtimes.protocol import Want
from edgemt.tokenizer import Tokenizer
from edgemt.translator import Translator

PRECISIONS = ("fp32", "fp16", "int8-static", "int8-dynamic")
# Of the standard deviation of FP32's logits; random weights are harder than trained ones.
ALLOWED = {"fp16": 0.03, "int8-static": 0.3, "int8-dynamic": 0.3}


@pytest.fixture(scope="module", params=["student", "opus"])
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundles of one checkpoint by precision, static INT8 with ranges of real decoding."""
    home = tmp_path_factory.mktemp(request.param)
    checkpoint = getattr(marian, request.param)(home / "checkpoint")
    made = {"fp32": marian.bundle(checkpoint, home / "fp32")}
    manifest = open_bundle(made["fp32"]).manifest
    texts = [("zh", "en", zh) for zh, _ in marian.sentences()[:8]]
    spec = collect(
        made["fp32"],
        manifest,
        target("onnxruntime").activations(marian.canonical(checkpoint)),
        texts,
        observer="minmax",
    )
    for precision in PRECISIONS[1:]:
        ranges = spec.activations if precision == "int8-static" else None
        made[precision] = marian.bundle(checkpoint, home / precision, precision, ranges)
    return made


def logits(directory: Path) -> np.ndarray:
    """FP32's own ten target tokens after a real sentence, and each model's logits for them."""
    opened = open_bundle(directory)
    program = open_program(opened.directory, opened.manifest)
    zh, _ = marian.sentences()[20]
    source = np.array([[*Tokenizer.of(opened).encode(zh), opened.manifest.model.eos_id]], np.int32)
    encoded = program.encode(source, np.array([source.shape[1]], np.int32))
    session = program.open(encoded, np.array([0], np.int32), 10)
    ids, one = np.arange(100, 110, dtype=np.int32), np.array([1], np.int32)
    steps = [session.step(ids[None, i : i + 1], one, Want(logits=True)) for i in range(10)]
    return np.concatenate([step.logits[0] for step in steps])


@pytest.mark.parametrize("precision", ALLOWED)
def test_stays_near_fp32(bundles: dict[str, Path], precision: str) -> None:
    reference, lowered = logits(bundles["fp32"]), logits(bundles[precision])
    error = np.sqrt(np.square(lowered - reference).mean()) / reference.std()
    assert 0 < error < ALLOWED[precision]


@pytest.mark.parametrize("precision", ["int8-static", "int8-dynamic"])
@pytest.mark.parametrize("role", ["encoder", "step", "greedy"])
def test_onnxruntime_fuses_every_quantised_product(
    bundles: dict[str, Path], precision: str, role: str, tmp_path: Path
) -> None:
    """Otherwise it unpacks all weights again at every step, five times as slow."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(bundles[precision] / f"{role}.onnx"), options)
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    if role == "greedy":
        graph, role = body(graph), "step"
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("MatMul", "FusedMatMul", "Gemm"):
            assert "DequantizeLinear" not in {made_by.get(name) for name in node.input}, node.name
    fused = {"int8-static": "MatMulIntegerToFloat", "int8-dynamic": "DynamicQuantizeMatMul"}[precision]
    layers = open_bundle(bundles[precision]).manifest.layers
    products = [layer for layer in layers if layer["graph"] == role and layer["op"] == "MatMul"]
    assert sum(node.op_type == fused for node in graph.node) == len(products) > 0


def body(graph: onnx.GraphProto) -> onnx.GraphProto:
    """What the greedy graph does for each token."""
    (loop,) = (node for node in graph.node if node.op_type == "Loop")
    return next(attribute.g for attribute in loop.attribute if attribute.name == "body")


@pytest.mark.parametrize("precision", ["fp32", "int8-static", "int8-dynamic"])
def test_the_greedy_graph_says_what_steps_say(bundles: dict[str, Path], precision: str) -> None:
    opened = open_bundle(bundles[precision])
    program, model = open_program(opened.directory, opened.manifest), opened.manifest.model
    tokenizer, end = Tokenizer.of(opened), np.array([model.eos_id], np.int32)
    start = np.array([[model.start_id]], np.int32)
    lengths = set()
    for zh, _ in marian.sentences()[:12]:
        ids = np.array([[*tokenizer.encode(zh), model.eos_id]], np.int32)
        source = program.encode(ids, np.array([ids.shape[1]], np.int32))
        for most in (1, 7, 30):
            whole = program.greedy(source, start, most, end)[0].tolist()
            session = program.open(source, np.array([0], np.int32), most)
            tokens, token = [], model.start_id
            while len(tokens) < most and token != model.eos_id:
                step = session.step(np.array([[token]], np.int32), np.array([1], np.int32), Want())
                token = int(step.ids[0, 0, 0])
                tokens.append(token)
            assert whole == [token for token in tokens if token != model.eos_id]
            lengths.add(len(whole))
    assert max(lengths) > 7


def test_the_step_graph_is_loaded_when_something_else_than_greedy_search_needs_it(
    bundles: dict[str, Path],
) -> None:
    opened = open_bundle(bundles["int8-dynamic"])
    translator = Translator(opened)
    zh = marian.sentences()[0][0]
    translator.translate(zh, source_lang="zh", target_lang="en")
    assert translator.program._loaded_step is None
    translator.translate(zh, source_lang="zh", target_lang="en", beam=2)
    assert translator.program._loaded_step is not None


def test_every_weight_is_int8_and_the_tied_one_is_stored_once(bundles: dict[str, Path]) -> None:
    layers = open_bundle(bundles["int8-dynamic"]).manifest.layers
    kinds = {layer["name"]: layer["precision"] for layer in layers}
    assert {kind for name, kind in kinds.items() if "embed_positions" not in name} == {"int8"}
    vocab = open_bundle(bundles["fp32"]).manifest.model.vocab_size
    tables = set()
    for role in ("encoder", "step"):
        graph = onnx.load(str(bundles["int8-dynamic"] / f"{role}.onnx"), load_external_data=False).graph
        tables |= {
            (init.name, *(entry.value for entry in init.external_data))
            for init in graph.initializer
            if vocab in init.dims and 32 in init.dims
        }
    assert len(tables) == 1
    assert (bundles["int8-dynamic"] / "weights.bin").stat().st_size < 0.4 * (
        bundles["fp32"] / "weights.bin"
    ).stat().st_size


def test_suppressed_ids_are_never_among_the_best(bundles: dict[str, Path]) -> None:
    opened = open_bundle(bundles["fp32"])
    program = open_program(opened.directory, opened.manifest)
    assert opened.manifest.model.pad_id in opened.manifest.model.suppress
    count = opened.manifest.model.vocab_size - len(opened.manifest.model.suppress)
    session = program.open(
        program.encode(np.array([[5, 0]], np.int32), np.array([2], np.int32)), np.array([0], np.int32), 1
    )
    best = session.step(np.array([[7]], np.int32), np.array([1], np.int32), Want(top_k=count)).ids[0, 0]
    assert not set(best.tolist()) & set(opened.manifest.model.suppress)


@pytest.mark.parametrize("kind", [S8, S8_PAIRED, U8])
@pytest.mark.parametrize("shape", [(7, 5), (8, 3), (1, 4)])
def test_codes_give_back_the_weights(kind: tuple, shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight[:, 1] = 0
    codes, scale = quantize_weight(weight, kind, axis=1)
    centred = codes.astype(np.int32) - kind.zero
    assert codes.dtype == kind.dtype and scale.shape == shape[1:] and (scale > 0).all()
    assert (np.abs(centred * scale - weight) <= scale / 2 + 1e-7).all()
    if kind.paired:  # 255 times any two neighbours stays within 16 bits
        pairs = np.add.reduceat(np.abs(centred), np.arange(0, shape[0], 2), axis=0)
        assert pairs.max() * 255 <= 32767
    transposed, by_row = quantize_weight(weight.T, kind, axis=0)
    assert np.array_equal(transposed, codes.T) and np.array_equal(by_row, scale)


def test_a_missing_range_and_an_overflow_name_the_tensor(tmp_path: Path) -> None:
    graphs = marian.canonical(marian.student(tmp_path / "checkpoint"))
    with pytest.raises(EdgemtError, match=r"no range for encoder\.embeddings"):
        target("onnxruntime").lower(graphs, "int8-static")
    graphs.weights["encoder.layers.0.fc1.weight"] = graphs.weights["encoder.layers.0.fc1.weight"] * 1e6
    with pytest.raises(EdgemtError, match=r"FP16 cannot hold .*encoder\.layers\.0\.fc1\.weight"):
        target("onnxruntime").lower(graphs, "fp16").graphs.write(tmp_path)
    with pytest.raises(UsageError, match="no target coffee"):
        target("coffee")


def test_lowering_leaves_the_canonical_graphs_alone(tmp_path: Path) -> None:
    graphs = marian.canonical(marian.student(tmp_path / "checkpoint"))
    before = {role: model.SerializeToString() for role, model in graphs.graphs.items()}
    names = set(graphs.weights)
    for precision in ("fp32", "fp16", "int8-dynamic"):
        target("onnxruntime").lower(graphs, precision)
    assert {role: model.SerializeToString() for role, model in graphs.graphs.items()} == before
    assert set(graphs.weights) == names
    assert read_checkpoint(tmp_path / "checkpoint").tensors
