"""What a Raspberry Pi 5 would take for a decoder-only bundle: ranges, computed and not measured.

    python benchmarks/causal_projection.py BUNDLE … [--prompt 64] [--prefix 38] [--tokens 25] [--threads 4]
        [--quality FILE.json [--draft BUNDLE]] [--counts FILE.json] [--json FILE.json] [--write FILE.md]

A pass over the weights takes

    max( bytes of the weights / bandwidth,   multiplications / 16 · instructions each · rows / (IPC · 2.4 GHz
    · gain) )

with the ranges of edgemt/data/pi5.json, which published figures of that board were fitted to
(docs/projection.md). Rows are the tokens that go through the model together: the prompt's, one in plain
decoding, one and the proposals where a draft is verified. A sentence is one pass over its prompt, without the
prefix where that is cached, and then one pass a token, or one for as many tokens as the task draft of
causal_quality.py measured. Keys and values are not counted: 0.03 MB a token at 1.8 B, beside a gigabyte of
weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.peers_page import table  # noqa: E402
from edgemt.bench import device_model as device  # noqa: E402
from edgemt.bench.device_model import Draws  # noqa: E402
from edgemt.bench.options import check_writable, write  # noqa: E402
from edgemt.bench.stats import F64  # noqa: E402
from edgemt.bundle import open_bundle  # noqa: E402
from edgemt.errors import EdgemtError, UsageError  # noqa: E402

DRAWS = 1000
LANES = 16  # multiplications of a dot product instruction
COUNTED = 0.1  # how far a counted figure may be off on another model, either way: our assumption
TOLD = ("label", "bytes", "weights")  # of a row; the rest are figures
FLOAT_PER_DOT = (14.0, 20.0)  # instructions for 16 multiplications in FP32: 4 FMLA and their loads, unrolled


@dataclass(frozen=True)
class Weights:
    """What one pass over a model reads and multiplies, and the instructions for 16 multiplications
    (ranges)."""

    label: str
    bytes: float
    elements: float  # multiplications a row
    one_row: tuple[float, float]
    rows: tuple[float, float]


@dataclass(frozen=True)
class Verified:
    """Speculative decoding as it was measured: a pass verifies `proposed` tokens and yields `new` ones."""

    proposed: float
    new: float
    draft: Weights | None = None  # None: look-up, which is free


def one_pass(draws: Draws, weights: Weights, rows: float, threads: int) -> F64:
    """Seconds [draws] of `rows` tokens that go through the model together."""
    fewest, most = weights.one_row if rows == 1 else weights.rows
    per_dot = np.random.default_rng(device.SEED + 1).uniform(fewest, most, draws.count)
    gain = 1 + (threads - 1) * draws["split_gain"]
    compute = weights.elements / LANES * per_dot * rows / (draws["kernel_ipc"] * draws.device.hertz * gain)
    memory = draws["memory_gb_s_one" if threads == 1 else "memory_gb_s_all"]
    return np.maximum(compute, weights.bytes / (memory * 1e9))


def sentence(
    draws: Draws, weights: Weights, prompt: int, tokens: int, threads: int, verified: Verified | None = None
) -> F64:
    """Seconds [draws] of an answer of `tokens` tokens behind the `prompt` tokens that are not cached."""
    begin = one_pass(draws, weights, prompt, threads)
    if verified is None:
        return begin + tokens * one_pass(draws, weights, 1, threads)
    step = one_pass(draws, weights, 1 + verified.proposed, threads)
    if verified.draft:
        begin = begin + one_pass(draws, verified.draft, prompt, threads)
        step = step + verified.proposed * one_pass(draws, verified.draft, 1, threads)
    return begin + tokens / verified.new * step


def products(model: Any) -> Iterator[tuple[float, float]]:
    """Weights of each product with constant ones in a step graph (onnx.ModelProto), and the bytes it reads.

    onnxruntime holds the scales of blocks in FP32, whatever they are in the file.
    """
    sizes = {"FLOAT": 4, "FLOAT16": 2, "UINT8": 1, "INT8": 1}
    from onnx import TensorProto

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            given = {attribute.name: attribute.i for attribute in node.attribute}
            elements = given["K"] * given["N"]
            yield elements, elements * given["bits"] / 8 + elements / given["block_size"] * sizes["FLOAT"]
        elif node.op_type in ("MatMul", "Gemm"):
            name = node.input[1]
            while name in made and made[name].op_type in ("DequantizeLinear", "Transpose", "Cast"):
                name = made[name].input[0]
            if name in tensors:
                elements = float(np.prod(tensors[name].dims))
                yield elements, elements * sizes[TensorProto.DataType.Name(tensors[name].data_type)]


def weights_of(path: Path, counts: Sequence[dict[str, Any]] = ()) -> Weights:
    """Of a bundle. `counts`: rows of tests/device/count_causal.py; those of its precision tell the
    instructions.

    Raises UsageError for another family of models.
    """
    import onnx

    bundle = open_bundle(path)
    manifest = bundle.manifest
    if manifest.family != "causal":
        raise UsageError(f"{path} is a {manifest.family} model: use edgemt bench --project pi5")
    graph = onnx.load(str(bundle.directory / manifest.graphs["step"].file), load_external_data=False)
    found = list(products(graph))
    parameters = device.read_device("pi5").parameters
    one, several = (parameters[f"dot_instructions_{name}"]["range"] for name in ("one_row", "rows"))
    if manifest.precision in ("fp32", "fp16"):
        one = several = FLOAT_PER_DOT
    for row in counts:
        if row["engine"] == "edgemt" and row["precision"] == manifest.precision:
            one, several = (around(row[name]) for name in ("decode_per_dot", "prefill_per_dot"))
    elements, size = (sum(values) for values in zip(*found, strict=True))
    return Weights(f"{manifest.name} {manifest.precision}", size, elements, tuple(one), tuple(several))


def around(counted: float) -> tuple[float, float]:
    return counted * (1 - COUNTED), counted * (1 + COUNTED)


def project(args: argparse.Namespace) -> dict[str, Any]:
    draws = device.draw(device.read_device("pi5"), DRAWS)
    counts = json.loads(args.counts.read_text(encoding="utf-8"))["rows"] if args.counts else []
    drafts = drafts_of(args, counts)
    rows = []
    for path in args.bundles:
        weights = weights_of(path, counts)
        ways: dict[str, F64] = {
            "prefill, tok/s": args.prompt / one_pass(draws, weights, args.prompt, args.threads),
            "decode, tok/s": 1 / one_pass(draws, weights, 1, args.threads),
        }
        cases = [("a sentence, s", args.prompt, None), ("cached prefix", args.prompt - args.prefix, None)]
        if found := drafts.get(open_bundle(path).manifest.precision):
            cases += [("draft", args.prompt, found), ("draft, cached prefix", cases[1][1], found)]
        for name, prompt, verified in cases:
            ways[name] = sentence(draws, weights, prompt, args.tokens, args.threads, verified)
        figures = {name: device.bounds(values) for name, values in ways.items()}
        rows.append({"label": weights.label, "bytes": weights.bytes, "weights": weights.elements} | figures)
    settings = {name: getattr(args, name) for name in ("prompt", "prefix", "tokens", "threads")}
    return {"format": "edgemt-causal-projection", "kind": "projected", "settings": settings, "rows": rows}


def drafts_of(args: argparse.Namespace, counts: Sequence[dict[str, Any]]) -> dict[str, Verified]:
    """By the label of the bundle in the file of causal_quality.py: what its task draft measured."""
    if args.quality is None:
        return {}
    measured = json.loads(args.quality.read_text(encoding="utf-8")).get("draft", {})
    own = weights_of(args.draft, counts) if args.draft else None
    return {
        label: Verified(one["proposed"] / one["steps"], one["tokens"] / one["steps"], own)
        for label, one in measured.items()
        if one["steps"]
    }


def page(data: dict[str, Any]) -> str:
    s = data["settings"]
    names = [name for name in dict.fromkeys(n for row in data["rows"] for n in row) if name not in TOLD]
    rows = []
    for row in data["rows"]:
        figures = [span(row[name]) if name in row else "–" for name in names]
        rows.append([row["label"], f"{row['bytes'] / 1e6:.0f} MB", *figures])
    head = ["projected for a Raspberry Pi 5, not measured", "read a token", *names]
    note = (
        f"{s['threads']} threads; a prompt of {s['prompt']} tokens, the first {s['prefix']} always the same; "
        f"an answer of {s['tokens']} tokens. Middle, and 5th and 95th percentile of {DRAWS} boards that the "
        "ranges allow."
    )
    return "\n".join([*table(head, rows), "", note, ""])


def span(bounds: Sequence[float]) -> str:
    low, middle, high = bounds
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("bundles", nargs="+", type=Path, metavar="BUNDLE")
    add("--prompt", type=int, default=64, metavar="N", help="tokens, prefix and all (default: 64)")
    add("--prefix", type=int, default=38, metavar="N", help="of them before the text (default: 38)")
    add("--tokens", type=int, default=25, metavar="N", help="of the answer (default: 25)")
    add("--threads", type=int, default=4, metavar="N", help="default: 4")
    add("--quality", type=Path, metavar="FILE.json", help="of causal_quality.py, with its task draft")
    add("--draft", type=Path, metavar="BUNDLE", help="that it used (default: look-up)")
    add("--counts", type=Path, metavar="FILE.json", help="of tests/device/count_causal.py")
    add("--json", type=Path, metavar="FILE.json")
    add("--write", type=Path, metavar="FILE.md")
    args = parser.parse_args()
    try:
        check_writable(args.json, "--json")
        check_writable(args.write, "--write")
        data = project(args)
    except EdgemtError as error:
        print(f"causal_projection: {error}", file=sys.stderr)
        return error.exit_code
    if args.json:
        write(args.json, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    if args.write:
        write(args.write, page(data))
    print(page(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
