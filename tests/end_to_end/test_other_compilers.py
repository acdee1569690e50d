"""The canonical graphs are for every target: TVM Relax and OpenVINO compute what ONNX Runtime does.

One encoder run and ten decode steps with a growing cache, on the default model's FP32 graphs; a prompt and
nine steps on decoder-only graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from causal_models import EOS, checkpoint_of, model_of

from edgemt.export.checkpoints.read import read_checkpoint
from edgemt.export.graphs import causal
from edgemt.export.graphs.marian import build
from edgemt.export.languages import languages

CHECKPOINT = Path(__file__).parents[2] / "examples" / "medical-zh-en" / "checkpoint"
STEPS = 10
Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    directory = tmp_path_factory.mktemp("canonical")
    checkpoint = read_checkpoint(CHECKPOINT)
    files = build(checkpoint, languages(checkpoint)[1]).write(directory)
    return {role: directory / file for role, file in files.items()}


def onnxruntime_run(file: Path) -> Run:
    session = onnxruntime.InferenceSession(str(file))
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def openvino_run(file: Path) -> Run:
    import openvino

    # f32: the default (bf16 where the CPU has it) is not a comparison of graphs.
    compiled = openvino.compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(feeds: Arrays) -> Arrays:
        results = compiled(feeds)
        return {name: results[port] for port in compiled.outputs for name in port.names}

    return run


def tvm_run(file: Path) -> Run:
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model = onnx.load(str(file))
    module = from_onnx(model)
    machine = relax.VirtualMachine(relax.build(module, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]

    def run(feeds: Arrays) -> Arrays:
        result = machine["main"](*[tvm.runtime.tensor(feeds[name]) for name in inputs])
        return {name: result[i].numpy() for i, name in enumerate(outputs)}

    return run


def decode(
    encoder: Run, step: Run, layers: int, heads: int, head_dim: int, forced: list[int] | None
) -> Arrays:
    """Encode one sentence, then STEPS greedy steps (or the forced ids); everything that came out, by name."""
    source = np.array([[4, 321, 97, 1204, 88, 530, 0]], np.int32)
    bias = np.zeros((1, 1, 1, source.shape[1]), np.float32)
    positions = np.arange(source.shape[1], dtype=np.int32)[None]
    seen = encoder({"input_ids": source, "position_ids": positions, "source_bias": bias})
    cross = dict(seen)
    past = {
        f"past_{part}.{i}": np.zeros((0, 1, heads, head_dim), np.float32)
        for i in range(layers)
        for part in ("key", "value")
    }
    token, tokens, logits = 2, [], []
    for t in range(STEPS):
        feeds = {
            "input_ids": np.array([[token]], np.int32),
            "position_ids": np.array([[t]], np.int32),
            "self_bias": np.zeros((1, 1, 1, t + 1), np.float32),
            "source_bias": bias,
            **past,
            **cross,
        }
        out = step(feeds)
        past = {
            name: np.concatenate([rows, out[name.replace("past", "present")]]) for name, rows in past.items()
        }
        logits.append(out["logits"])
        token = forced[t] if forced is not None else int(out["logits"][0, 0].argmax())
        tokens.append(token)
    return {**cross, **past, "logits": np.stack(logits), "tokens": np.array(tokens)}


@pytest.mark.parametrize("runner", [openvino_run, tvm_run], ids=["openvino", "tvm"])
def test_canonical_graphs_compute_the_same_elsewhere(
    graphs: Mapping[str, Path], runner: Callable[[Path], Run]
) -> None:
    pytest.importorskip(runner.__name__.removesuffix("_run"))
    layers = sum(
        value.name.startswith("cross_key") for value in onnx.load(str(graphs["encoder"])).graph.output
    )
    step = onnx.load(str(graphs["step"]))
    shape = next(value for value in step.graph.input if value.name == "past_key.0").type.tensor_type.shape.dim
    heads, head_dim = shape[2].dim_value, shape[3].dim_value
    run = {role: onnxruntime_run(file) for role, file in graphs.items()}
    want = decode(run["encoder"], run["step"], layers, heads, head_dim, None)
    other = {role: runner(file) for role, file in graphs.items()}
    got = decode(other["encoder"], other["step"], layers, heads, head_dim, want["tokens"].tolist())
    assert set(got) == set(want)
    for name, expected in want.items():
        tolerance = 1e-4 * max(1.0, float(expected.std()))
        np.testing.assert_allclose(got[name], expected, atol=tolerance, rtol=0, err_msg=name)


def answer(step: Run, past: Arrays, ids: list[int]) -> tuple[Arrays, Arrays]:
    """A step of these ids; what came out, and the cache with it."""
    begun, width = len(past["past_key.0"]), len(ids)
    positions = np.arange(begun, begun + width, dtype=np.int32)
    bias = np.where(np.arange(begun + width) <= positions[:, None], 0, -10000).astype(np.float32)
    feeds = {
        "input_ids": np.array([ids], np.int32),
        "position_ids": positions[None],
        "self_bias": bias[None, None],
        "wanted": np.array([[width - 1]], np.int32),
        **past,
    }
    out = step(feeds)
    grown = {n: np.concatenate([rows, out[n.replace("past", "present")]]) for n, rows in past.items()}
    return out, grown


@pytest.mark.parametrize("runner", [openvino_run, tvm_run], ids=["openvino", "tvm"])
@pytest.mark.parametrize("kind", ["hunyuan_v1_dense", "qwen2"])
def test_decoder_only_graphs_compute_the_same_elsewhere(
    kind: str, runner: Callable[[Path], Run], tmp_path: Path
) -> None:
    pytest.importorskip(runner.__name__.removesuffix("_run"))
    canonical = causal.build(checkpoint_of(model_of(kind)), 7, EOS, [])
    file = tmp_path / canonical.write(tmp_path)["step"]
    spec = canonical.states[0]
    empty = np.zeros((0, 1, *spec.shape[2:]), np.float32)
    ours, theirs = onnxruntime_run(file), runner(file)
    mine = other = {state.input: empty for state in canonical.states}
    ids = [5, 17, 250, 3, 99, 41]
    for _ in range(STEPS):
        want, mine = answer(ours, mine, ids)
        got, other = answer(theirs, other, ids)
        tolerance = 1e-4 * max(1.0, float(want["logits"].std()))
        np.testing.assert_allclose(got["logits"], want["logits"], atol=tolerance, rtol=0)
        ids = [int(want["logits"].argmax())]
