"""Instructions a token of decoder-only models on an emulated Cortex-A76: edgemt beside llama.cpp.

    python -m tests.device.count_causal MODEL … [--prompt 64] [--new 8] [--repeats 1] [--json FILE] [--write
    FILE.md]

A MODEL is a bundle's folder or a GGUF file. The tokens are the same for all: a clinic sentence in the prompt
of the first bundle (which must come first), cut or repeated to --prompt tokens. llama.cpp is cross-compiled
on first use: cmake, g++-aarch64-linux-gnu and four minutes of CPU time. One thread; what is counted is the
prefill of the whole prompt, and each token after the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.causal_projection import LANES, products
from benchmarks.peers_page import table
from edgemt.bench.options import check_writable, write
from edgemt.bundle import open_bundle
from edgemt.errors import EdgemtError
from edgemt.family import Request
from edgemt.translator import open_family
from tests.device import blocks, emulate, llama_aarch64

HERE = Path(__file__).parent
TEXT = "医生说手术很顺利，请您明天早上八点以前不要吃东西，也不要喝水，护士会再来给您量血压。"
TIMEOUT_S = 7200


def prompt_of(bundle: Path, length: int) -> list[int]:
    """Ids of a prompt of exactly so many tokens, its beginning and end the bundle's own."""
    opened = open_bundle(bundle)
    manifest = opened.manifest
    if manifest.family != "causal":
        raise EdgemtError(f"{bundle} is a {manifest.family} model; count it with tests.device.count")
    family = open_family(opened.directory, manifest)
    ids = [*family.source(Request(TEXT, "zh", "en")), manifest.model.start_id]
    end = len(manifest.chat["after"])
    body = ids[:-end]
    while len(body) + end < length:
        body += family.tokenizer.encode(TEXT)
    return body[: length - end] + ids[-end:]


def elements_of(bundle: Path) -> float:
    """Multiplications with weights that one token takes."""
    import onnx

    manifest = open_bundle(bundle).manifest
    graph = onnx.load(str(bundle / manifest.graphs["step"].file), load_external_data=False)
    return sum(elements for elements, _ in products(graph))


def counted(
    model: Path, prompt: Sequence[int], new: int, repeats: int
) -> tuple[list[blocks.Counts], list[int]]:
    """Counts of prefill and decode, by turns, and the new tokens."""
    numbers = [str(new), str(repeats), *map(str, prompt)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        plugin = f"{blocks.plugin()},out={out}"
        if model.suffix == ".gguf":
            program = llama_aarch64.program()
            words = [
                emulate.qemu(),
                "-cpu",
                emulate.CPU,
                "-plugin",
                plugin,
                str(program),
                str(model),
                *numbers,
            ]
            done = subprocess.run(words, capture_output=True, timeout=TIMEOUT_S)
        else:
            words = [HERE / "guest_tokens.py", model.resolve(), *numbers]
            done = emulate.run(words, path=[HERE], plugin=plugin, timeout=TIMEOUT_S)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise EdgemtError(f"{model.name} failed in the emulator: {said[-1]}")
        if model.suffix == ".gguf":
            tokens, maps = [int(word) for word in done.stdout.split()], ""
        else:
            answer = json.loads(done.stdout)
            tokens, maps = answer["tokens"], answer["maps"]
        found = [blocks.summarise(some, blocks.Maps(maps)) for some in blocks.read_intervals(out)]
    if len(found) != 2 * repeats:
        raise EdgemtError(f"{model.name}: {len(found)} intervals were counted, of {2 * repeats}")
    return found, tokens


def count(model: Path, prompt: Sequence[int], new: int, repeats: int, elements: float) -> dict[str, Any]:
    """A row: instructions a token. `…_per_dot`: for 16 multiplications with weights, all work included."""
    found, tokens = counted(model, prompt, new, repeats)
    prefill, decode = blocks.mean(found[::2]), blocks.mean(found[1::2])
    gguf = model.suffix == ".gguf"
    precision = model.stem.rpartition(".")[2] if gguf else open_bundle(model).manifest.precision
    passes = {"prefill": (prefill, len(prompt)), "decode": (decode, new - 1)}
    return {
        "engine": "llama.cpp" if gguf else "edgemt",
        "model": model.stem if gguf else open_bundle(model).manifest.name,
        "precision": precision,
        "prompt": len(prompt),
        "new": new,
        "tokens": tokens,
        **{name: counts.total / number for name, (counts, number) in passes.items()},
        **{f"{name}_dots": counts.dots / number for name, (counts, number) in passes.items()},
        **{f"{name}_per_dot": LANES * c.total / number / elements for name, (c, number) in passes.items()},
    }


def page(rows: Sequence[dict[str, Any]]) -> str:
    cells = [
        [f"{row['engine']} {row['precision']}", row["model"]]
        + [f"{row[name] / 1e6:.1f}" for name in ("prefill", "decode", "prefill_dots", "decode_dots")]
        + [f"{row[name]:.2f}" for name in ("prefill_per_dot", "decode_per_dot")]
        for row in rows
    ]
    head = ["", "model", "prefill, M a token", "decode, M a token", "SDOT in prefill, M", "SDOT in decode, M"]
    head += ["prefill per 16 multiplications", "decode per 16 multiplications"]
    note = (
        f"Millions of instructions a token on the emulated Cortex-A76, one thread; a prompt of "
        f"{rows[0]['prompt']} tokens, {rows[0]['new'] - 1} counted steps behind it. All work of the process "
        "is counted."
    )
    return "\n".join([*table(head, cells), "", note, ""])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="the first one is a bundle")
    parser.add_argument("--prompt", type=int, default=64, metavar="N", help="tokens (default: 64)")
    parser.add_argument("--new", type=int, default=8, metavar="N", help="tokens (default: 8)")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--json", type=Path, metavar="FILE.json")
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    args = parser.parse_args()
    check_writable(args.json, "--json")
    check_writable(args.write, "--write")
    prompt, elements = prompt_of(args.models[0], args.prompt), elements_of(args.models[0])
    rows = []
    for model in args.models:
        rows.append(count(model, prompt, args.new, args.repeats, elements))
        print(page(rows[-1:]), flush=True)
        if args.json:
            data = {"format": "edgemt-causal-instructions", "format_version": "1.0", "rows": rows}
            write(args.json, json.dumps(data, indent=1) + "\n")
        if args.write:
            write(args.write, page(rows))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgemtError as error:
        sys.exit(f"count_causal: {error}")
