"""Does `edgemt bench --compare` tell a real 10 % from noise on this machine? Runs it, often, and counts.

    python benchmarks/compare_noise.py --runs 12 --rounds 3 --json noise.json

Plain runs of `edgemt bench` and runs of a translator that is really slower take turns, each in a process of
its own. The slower one works on for a tenth of each text's time, in a busy loop after the translation. Then
neighbours are compared: plain with plain, where a difference would be a false alarm, and plain with slower,
where none would be a miss; with one run a side and with two. The machine should do nothing else meanwhile.
Disturbed runs are counted apart: `--compare` gives no verdict on them, but their intervals count here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgemt.bench.compare import compare

SHOULD_SAY = {
    "same, 1 run a side": "no_difference",
    "slower, 1 run a side": "slower",
    "same, 2 runs a side": "no_difference",
    "slower, 2 runs a side": "slower",
}


def slower(share: float) -> None:
    """Make every translation of this process take `share` longer, by work and not by sleep."""
    from edgemt.translator import Translator

    plain = Translator.translate

    def translate(self, *args, **kwargs):
        begin = time.perf_counter_ns()
        result = plain(self, *args, **kwargs)
        now = time.perf_counter_ns()
        end = now + int((now - begin) * share)
        while time.perf_counter_ns() < end:
            pass
        return result

    Translator.translate = translate  # type: ignore[method-assign]


def measure(path: Path, share: float, rounds: int, options: list[str]) -> Path:
    command = [
        sys.executable,
        __file__,
        "--as-bench",
        str(share),
        "--rounds",
        str(rounds),
        "--json",
        str(path),
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(done.stderr)
    return path


def count(pairs: list[tuple[list[Path], list[Path]]], truth: float) -> dict[str, Any]:
    """What the intervals say of pairs whose true ratio is `truth`."""
    found = [compare([base, other])["pairs"][0] for base, other in pairs]
    bounds = [pair["overall"]["interval"] for pair in found]
    ratios = sorted(pair["overall"]["ratio"] for pair in found)
    return {
        "comparisons": len(found),
        "disturbed": sum(bool(pair["disturbed"]) for pair in found),
        "faster": sum(high < 1 for _, high in bounds),
        "slower": sum(low > 1 for low, _ in bounds),
        "no_difference": sum(low <= 1 <= high for low, high in bounds),
        "held_the_truth": sum(low <= truth <= high for low, high in bounds),
        "ratios": [round(ratio, 4) for ratio in ratios],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=12, help="of each kind (default: 12)")
    parser.add_argument("--rounds", type=int, default=3, help="of each run (default: 3)")
    parser.add_argument("--percent", type=float, default=10, help="how much slower (default: 10)")
    parser.add_argument("--json", type=Path, help="write the counts")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the runs there, and use those there are"
    )
    args, options = parser.parse_known_args()
    share = args.percent / 100
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        plain, slow = [], []
        for number in range(args.runs):
            kinds = [(plain, "plain", 0.0), (slow, "slow", share)]
            for runs, name, spin in kinds if number % 2 else reversed(kinds):
                path = folder / f"{name}{number:02}.json"
                runs.append(path if path.exists() else measure(path, spin, args.rounds, options))
                print(f"\r{number + 1} of {args.runs}: {name:<6}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        twos = range(0, args.runs - 1, 2)
        fours = range(0, args.runs - 3, 4)
        data: dict[str, Any] = {
            "runs": args.runs,
            "rounds": args.rounds,
            "percent": args.percent,
            "same, 1 run a side": count([([plain[n]], [plain[n + 1]]) for n in twos], 1),
            "slower, 1 run a side": count([([a], [b]) for a, b in zip(plain, slow, strict=True)], 1 + share),
            "same, 2 runs a side": count([(plain[n : n + 2], plain[n + 2 : n + 4]) for n in fours], 1),
            "slower, 2 runs a side": count([(plain[n : n + 2], slow[n : n + 2]) for n in twos], 1 + share),
        }
    for name, right in SHOULD_SAY.items():
        counts = data[name]
        total = counts["comparisons"]
        print(
            f"{name:<22} {right} {counts[right]} of {total}; "
            f"interval held the truth {counts['held_the_truth']} of {total}; "
            f"disturbed {counts['disturbed']}; ratios {counts['ratios'][0]} to {counts['ratios'][-1]}"
        )
    if args.json:
        args.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-bench"]:
        slower(float(sys.argv[2]))
        from edgemt.cli import main as cli

        sys.exit(cli(["bench", *sys.argv[3:]]))
    sys.exit(main())
