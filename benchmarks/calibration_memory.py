"""Does calibration's memory stay flat? Peak RSS and time of a calibration on few and on many sentences.

    python benchmarks/calibration_memory.py FP32_BUNDLE CALIBRATION.tsv [--sizes 100 2000] [--observer mse]

The smaller sets are even samples of the largest by length, its longest sentence included: the question is
what the number of sentences costs, and a longer sentence needs more memory by itself. Each size runs in a
process of its own, on one thread, attention's operands included. Part of what grows is no allocation but the
weights' file, mapped into memory: more sentences use more rows of the embedding. Exits with 1 if the largest
run needs more than 1.05 times the memory of the smallest.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from edgemt.bundle import open_bundle
from edgemt.calibration.collect import calibration_tensors, collect
from edgemt.calibration.observers import OBSERVERS
from edgemt.export.rows import interleaved, read_rows

ALLOWED = 1.05


def measure(bundle: Path, calibration: Path, size: int, most: int, observer: str) -> dict[str, float]:
    """One calibration in this process, on `size` of `most` sentences."""
    opened = open_bundle(bundle)
    manifest, directory = opened.manifest, opened.directory
    rows = sorted(
        interleaved(read_rows(calibration, manifest.languages), most), key=lambda row: len(row.source)
    )
    rows = [rows[len(rows) * (i + 1) // size - 1] for i in range(min(size, len(rows)))]
    tensors = calibration_tensors(directory, manifest, products=True)
    start = time.perf_counter()
    spec = collect(directory, manifest, tensors, [row[:3] for row in rows], observer=observer)
    return {
        "sentences": spec.sentences,
        "steps": spec.steps,
        "tensors": len(spec.activations),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Peak memory of calibration on few and on many sentences.")
    parser.add_argument("bundle", type=Path, help="an FP32 bundle")
    parser.add_argument("calibration", type=Path, help="tab-separated sentences, as edgemt export takes them")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 2000], metavar="N")
    parser.add_argument("--observer", choices=list(OBSERVERS), default="mse")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)  # one size, in this process
    args = parser.parse_args()
    most = max(args.sizes)
    if args.only:
        print(json.dumps(measure(args.bundle, args.calibration, args.only, most, args.observer)))
        return 0
    command = [sys.executable, __file__, *sys.argv[1:]]
    peaks = []
    for size in sorted(args.sizes):
        run = subprocess.run([*command, "--only", str(size)], stdout=subprocess.PIPE, check=True)
        found = json.loads(run.stdout)
        print("  ".join(f"{key} {value}" for key, value in found.items()), flush=True)
        peaks.append(found["peak_rss_mb"])
    ratio = peaks[-1] / peaks[0]
    print(f"ratio {ratio:.3f} ({'flat' if ratio <= ALLOWED else 'not flat'}: {ALLOWED} allowed)")
    return ratio > ALLOWED


if __name__ == "__main__":
    sys.exit(main())
