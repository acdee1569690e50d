"""Which nodes of a bundle's graphs the instructions of a warm translation go to, on an emulated Cortex-A76.

    python -m tests.device.nodes BUNDLE [--beam N] [--bucket N] [--text N] [--top N]

onnxruntime's executor comes back to one place in its code after every node. That place is found by its count
(as often as nodes were executed, behind an indirect call, and the dot products fall to matrix products), and
count.c notes the instructions each time it is passed. The nodes' names are those of the graph as onnxruntime
optimised it, in the order of its own profile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgemt.bench.workload import BUCKETS, Sentence
from edgemt.bundle import DEFAULT
from edgemt.errors import EdgemtError
from tests.device import blocks, count, emulate

HERE = Path(__file__).parent
Node = tuple[str, str]  # name, operator
LIBRARY = "onnxruntime_pybind11_state"
BLR = 0xD63F0000  # with its register's bits zero
PRODUCTS = ("MatMul", "Gemm", "Attention", "Gather")  # in the names of operators that may use dot products


def profiled(bundle: Path, sentence: Sentence, beam: int) -> list[Node]:
    """The nodes executed for a text in the order in which they end, by onnxruntime's profile in the root."""
    with tempfile.TemporaryDirectory() as folder:
        text = [beam, sentence.source_lang, sentence.target_lang, sentence.source]
        done = emulate.run([HERE / "profile_guest.py", bundle.resolve(), folder, *map(str, text)])
        if done.returncode:
            raise EdgemtError(f"no profile: {done.stderr.decode().strip().splitlines()[-1]}")
        found: list[Node] = []
        files = json.loads(done.stdout)
        for role in sorted(
            files
        ):  # the encoder runs before the greedy or the step graph, also by the alphabet
            events = json.loads(Path(files[role]).read_text())
            kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
            found += [
                (e["name"].removesuffix("_kernel_time"), e["args"]["op_name"])
                for e in sorted(kernels, key=lambda e: e["ts"] + e["dur"])
            ]
    return found


def candidates(executed: np.ndarray, maps: blocks.Maps, times: int) -> Iterator[int]:
    """Addresses behind an indirect call in onnxruntime that were passed `times` times."""
    code: dict[str, bytes] = {}
    passed: Counter[int] = Counter()
    for address, number in zip(executed["address"].tolist(), executed["count"].tolist(), strict=True):
        passed[address] += number
    for address, number in passed.items():
        if number != times:
            continue
        file, offset = maps.file_of(address)
        if LIBRARY not in file:
            continue
        if file not in code:
            code[file] = Path(file).read_bytes()
        word = int.from_bytes(code[file][offset - 4 : offset], "little")
        if word & 0xFFFFFC1F == BLR:
            yield address


def by_node(job: dict[str, Any], order: list[Node]) -> list[tuple[Node, int, int]]:
    """Each executed node with its instructions and dot products; what Python does falls to the next node."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        result = blocks.guest(job, f"{blocks.plugin()},out={out}")
        executed = blocks.read_intervals(out)[0]
        best: tuple[int, np.ndarray] | None = None
        for address in candidates(executed, blocks.Maps(result["maps"]), len(order)):
            blocks.guest(job, f"{blocks.plugin()},out={out},at={address:x}")
            totals = np.fromfile(f"{out}.at", np.uint64).reshape(-1, 2).astype(np.int64)
            if len(totals) != len(order):
                continue
            parts = np.diff(totals, axis=0, prepend=0)
            right = [any(p in op for p in PRODUCTS) for _, op in order]
            hits = int(parts[right, 1].sum())
            if best is None or hits > best[0]:
                best = hits, parts
            if hits == parts[:, 1].sum():
                break
        if best is None:
            raise EdgemtError(
                f"no place in onnxruntime was passed {len(order)} times, as often as nodes were"
            )
    return [(node, *part) for node, part in zip(order, best[1].tolist(), strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--bucket", type=int, default=25, choices=BUCKETS)
    parser.add_argument("--beam", type=int, default=1, help="default: 1, which is greedy")
    parser.add_argument("--text", type=int, default=0, help="which text of one sentence, from 0")
    parser.add_argument("--top", type=int, default=25, help="nodes to list")
    args = parser.parse_args()
    one = [s for s in count.choose([args.bucket], 6) if len(count.sentences_of(s)) == 1]
    if args.text >= len(one):
        raise EdgemtError(f"the bucket {args.bucket} has {len(one)} texts of one sentence among those tried")
    sentence = one[args.text]
    job = count.jobs_of(args.bundle, args.beam, [sentence], 1)
    parts = by_node(job, profiled(args.bundle, sentence, args.beam))
    whole = sum(part for _, part, _ in parts)
    print(f"{sentence.source}\n{whole / 1e6:.2f} M instructions, emulated Cortex-A76")
    for title, key in (("operator", lambda node: (node[1],)), ("node", lambda node: node)):
        print(f"\nby {title}: millions of instructions, share, executions, each, SDOTs each")
        sums: Counter[Any] = Counter()
        times: Counter[Any] = Counter()
        dots: Counter[Any] = Counter()
        for node, part, dot in parts:
            sums[key(node)] += part
            dots[key(node)] += dot
            times[key(node)] += 1
        for name, part in sums.most_common(args.top):
            print(
                f"  {part / 1e6:7.3f} {part / whole:6.1%} {times[name]:6d} {part // times[name]:9d} "
                f"{dots[name] // times[name]:8d}  {' '.join(name[::-1])}"
            )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgemtError as error:
        sys.exit(f"nodes: {error}")
