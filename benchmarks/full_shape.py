"""What does a model of HY-MT's full size cost? Export, size, memory and speed of one with random weights.

    python benchmarks/full_shape.py [--size 1.8B] [--layers N] [--precisions int4] [--json full_shape.json]

writes a checkpoint of the shape of HY-MT1.5 (BF16 safetensors in shards, a byte-level BPE tokenizer of as
many tokens, its special tokens and chat template), exports it as a user would, and runs the bundle on one
thread. Weights are random and merges are synthetic: nothing is said of quality. `--layers` takes fewer layers
of full width where disk or time do not allow for all. Options of `edgemt export` may follow.

Memory is what the process itself holds (RssAnon), sampled every 20 ms, by stage; mapped files, which the
system takes back when it must, are counted in VmHWM only. The estimate that `edgemt export` makes before it
starts stands beside what was measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from full_shape_checkpoint import SHAPES, write_checkpoint

from edgemt.bench.facts import machine_facts
from edgemt.bench.process import peak_rss

PERIOD = 0.02  # seconds between two looks at a process


def status(pid: int | str) -> dict[str, int]:
    """RssAnon and VmRSS of a process in bytes; {} when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS") if name in fields}


def export(checkpoint: Path, output: Path, arguments: list[str]) -> dict[str, Any]:
    """Run `edgemt export`; seconds and peak anonymous memory by stage, VmHWM of the whole."""
    command = [sys.executable, "-m", "edgemt.cli", "export", str(checkpoint), *arguments, "-o", str(output)]
    start, stage = time.perf_counter(), "start"
    peaks: dict[str, int] = defaultdict(int)
    process = subprocess.Popen([*command, "--force"], stderr=subprocess.PIPE, text=True)
    highest = 0

    def watch() -> None:
        nonlocal highest
        while process.poll() is None:
            peaks[stage] = max(peaks[stage], status(process.pid).get("RssAnon", 0))
            highest = peak_rss(process.pid) or highest
            time.sleep(PERIOD)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stderr is not None
    for line in process.stderr:
        print(line, end="", file=sys.stderr)
        if line.startswith("edgemt export: ") and line.endswith(" …\n"):
            stage = line.removeprefix("edgemt export: ").removesuffix(" …\n")
    watcher.join()
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return {
        "arguments": arguments,
        "seconds": round(time.perf_counter() - start, 1),
        "stages": [stage | {"anon": peaks.get(stage["name"], 0)} for stage in report["stages"]],
        "peak_anon": max(peaks.values()),
        "vm_hwm": highest,
        "estimated": report["needs"],
        "bytes": sum(file.stat().st_size for file in output.iterdir()),
        "parity": report["parity"],
    }


def work(bundle: Path, threads: int, prompt: int, steps: int) -> dict[str, Any]:
    """Load a bundle in this process, and run a prompt and so many steps behind it."""
    import numpy as np

    from edgemt.runtimes.protocol import Want
    from edgemt.translator import load

    start = time.perf_counter()
    translator = load(bundle, threads=threads)
    loaded, memory = time.perf_counter() - start, status("self")
    model, program = translator.bundle.manifest.model, translator.program
    ids = np.random.default_rng(0).integers(1000, model.vocab_size // 2, (1, prompt)).astype(np.int32)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(3):  # the first warms up
        source = program.encode(ids, np.array([prompt], np.int32))
        session = program.open(source, np.zeros(1, np.int32), steps + 1)
        token = np.array([[model.start_id]], np.int32)
        for step in range(steps + 1):
            begin = time.perf_counter()
            token = session.step(token, np.ones(1, np.int32), Want()).ids[:, -1:, 0]
            times["decode" if step else "prefill"].append(time.perf_counter() - begin)
        session.close()
    decode = sorted(times["decode"][steps:])
    return {
        "load_seconds": round(loaded, 2),
        "anon_loaded": memory["RssAnon"],
        "rss_loaded": memory["VmRSS"],
        "anon_at_work": status("self")["RssAnon"],
        "vm_hwm": peak_rss(),
        "prefill_tokens_per_second": round((prompt + 1) / min(times["prefill"][1:]), 2),
        "decode_tokens_per_second": round(1 / decode[len(decode) // 2], 2),
        "prompt": prompt,
        "steps": steps,
        "threads": threads,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SHAPES), default="1.8B")
    parser.add_argument("--layers", type=int, help="fewer layers of full width (default: all)")
    parser.add_argument("--checkpoint", type=Path, help="one that is there (default: it is written)")
    parser.add_argument("--precisions", nargs="+", default=["int4"], metavar="P")
    parser.add_argument("--folder", type=Path, default=Path("full_shape"), help="what is written goes here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # a bundle to run, in this process
    args, rest = parser.parse_known_args()
    if args.work:
        print(json.dumps(work(args.work, args.threads, prompt=64, steps=24)))
        return 0
    args.folder.mkdir(exist_ok=True)
    start = time.perf_counter()
    checkpoint = args.checkpoint or write_checkpoint(args.folder / "checkpoint", args.size, args.layers)
    result: dict[str, Any] = {
        "size": str(args.checkpoint.name) if args.checkpoint else args.size,
        "layers": args.layers,
        "checkpoint_bytes": sum(f.stat().st_size for f in checkpoint.glob("*.safetensors")),
        "writing_seconds": round(time.perf_counter() - start, 1),
        "machine": machine_facts(args.threads),
        "precisions": {},
    }
    for precision in args.precisions:
        bundle = args.folder / precision
        found = export(checkpoint, bundle, [f"--{precision}", *rest])
        again = [sys.executable, __file__, "--work", str(bundle), "--threads", str(args.threads)]
        found["work"] = json.loads(subprocess.run(again, stdout=subprocess.PIPE, check=True).stdout)
        result["precisions"][precision] = found
        shutil.rmtree(bundle)
        tell(precision, found)
    if args.json:
        args.json.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return 0


def tell(precision: str, found: dict[str, Any]) -> None:
    """A few lines for a reader."""
    print(f"{precision}: {found['bytes'] / 1e9:.3f} GB, exported in {found['seconds']:.0f} s")
    print(f"  memory {found['peak_anon'] / 1e9:.2f} GB, with mapped files {found['vm_hwm'] / 1e9:.2f} GB")
    for stage in found["stages"]:
        print(f"    {stage['anon'] / 1e9:6.2f} GB {stage['seconds']:8.1f} s  {stage['name']}")
    for name, need in found["estimated"].items():
        print(f"    {need / 1e9:6.2f} GB estimated, {name}")
    for name, value in found["work"].items():
        print(f"  {name} {value / 1e9:.2f} GB" if value > 1e6 else f"  {name} {value}")


if __name__ == "__main__":
    sys.exit(main())
