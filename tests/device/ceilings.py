"""The ceilings that instructions of a warm translation may not exceed: ceilings.json.

    python -m tests.device.ceilings     measures the default bundle and writes them anew (its exact counts)

They are to go down only. A model trained anew is the exception: it translates into other words.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgemt.bundle import DEFAULT
from edgemt.errors import EdgemtError
from tests.device import count, figures

FILE = Path(__file__).with_name("ceilings.json")
ALLOWED = 1.005  # of the ceiling: counts repeat to about a thousandth
LOOSE = 0.97  # below this share of its ceiling, the ceiling is to be lowered
QUICK = ((5, 1), (25, 1))  # (bucket, texts a direction)
ALL = tuple((bucket, 3) for bucket in count.BUCKETS)


def measure(cases: tuple[tuple[int, int], ...], beam: int) -> dict[str, int]:
    """Instructions of the default bundle by case, such as "greedy, bucket 25, 1 text a direction"."""
    found = {}
    for bucket, texts in cases:
        row = count.count_model(DEFAULT, beam, count.choose([bucket], texts), repeats=1)
        found[name(bucket, texts, beam)] = figures.to_json(row)["buckets"][0]["instructions"]["total"]
    return found


def name(bucket: int, texts: int, beam: int) -> str:
    search = "greedy" if beam == 1 else f"beam {beam}"
    return f"{search}, bucket {bucket}, {texts} {'text' if texts == 1 else 'texts'} a direction"


def read() -> dict[str, int]:
    return json.loads(FILE.read_text())


def main() -> None:
    found = {**measure(QUICK, 1), **measure(ALL, 1), **measure(ALL, 4)}
    figures.write(FILE, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except EdgemtError as error:
        sys.exit(f"ceilings: {error}")
