"""The default bundle on an x86 processor without VNNI, emulated: what it says, and that nothing saturates.

Such processors multiply unsigned by signed bytes into 16 bits, which overflow where two large products meet.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support import CHECKPOINT

import edgemt
from edgemt.calibration.gate import Output, decode, judge
from edgemt.export.rows import Row
from tests.device import emulate, outputs

EXTREME = """
import json
import numpy, onnxruntime
from onnx import TensorProto, helper, numpy_helper
weight = numpy_helper.from_array(numpy.full((64, 8), 127, numpy.int8), "w")
graph = helper.make_graph(
    [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
    "extreme",
    [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 64])],
    [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 8])],
    [weight],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
print(int(session.run(None, {"x": numpy.full((1, 64), 255, numpy.uint8)})[0][0, 0]))
"""


def test_the_emulated_processor_would_saturate() -> None:
    """Else the tests below would show nothing."""
    done = subprocess.run(emulate.without_vnni(["-c", EXTREME]), capture_output=True, text=True, timeout=300)
    assert int(done.stdout) < 64 * 255 * 127, done.stderr


def test_the_default_bundle_says_the_same_without_vnni(default_bundle: Path, heldout: list[Row]) -> None:
    """Saturation would move logits by tenths at once; rounding may still turn a near tie."""
    texts = [row[:3] for row in heldout[::63]]
    here = outputs.outputs(default_bundle, texts)
    found = outputs.differences(default_bundle, here, outputs.without_vnni(default_bundle, texts))
    outputs.report("x86 without VNNI against x86", len(here), found)
    assert len(found) <= 1 and all(one.gap < 0.1 for one in found)


@pytest.mark.slow
def test_the_quality_gate_passes_without_vnni(
    default_bundle: Path, heldout: list[Row], tmp_path: Path
) -> None:
    """The gate of export, against FP32, on all held-out sentences, translated by the emulated processor."""
    from edgemt.cli import main

    assert main(["export", str(CHECKPOINT), "--fp32", "-o", str(tmp_path / "fp32")]) == 0
    translator = edgemt.load(default_bundle)
    said = translations(default_bundle, heldout)
    candidate = [Output(text, tuple(translator.tokenizer.encode_target(text))) for text in said]
    result = judge(heldout, decode(edgemt.load(tmp_path / "fp32"), heldout), candidate)
    print(
        json.dumps({name: vars(found) for name, found in result.directions.items()}, default=vars, indent=1)
    )
    assert result.passed, result.reasons
    native = decode(translator, heldout)
    same = sum(one.text == other.text for one, other in zip(native, candidate, strict=True))
    print(f"{same} of {len(heldout)} texts are as this processor translates them")
    assert same >= 0.98 * len(heldout)


def translations(bundle: Path, rows: list[Row]) -> list[str]:
    """Of whole texts, by the command line on the emulated processor: a line each."""
    said: dict[int, str] = {}
    for source_lang in ("zh", "en"):
        chosen = [i for i, row in enumerate(rows) if row.source_lang == source_lang]
        target_lang = rows[chosen[0]].target_lang
        options = ("-b", bundle, "--beam", "1", "--from", source_lang, "--to", target_lang)
        done = subprocess.run(
            emulate.without_vnni(["-m", "edgemt.cli", "translate", *options]),
            input="\n".join(rows[i].source for i in chosen),
            capture_output=True,
            text=True,
            timeout=7200,
        )
        assert done.returncode == 0, done.stderr
        said |= zip(chosen, done.stdout.splitlines(), strict=True)
    return [said[i] for i in range(len(rows))]
