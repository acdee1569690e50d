"""Add to a checkpoint what its export needs: sentences, and the length of source that suits the model.

    python finalize.py --checkpoint DIR --data DIR

calibration.tsv (training pairs) and heldout.tsv (dev pairs) go where the checkpoint goes, so they hold only
text that may: the clinical corpus and the term list (CC BY 4.0) and TICO-19 (CC0). Tatoeba's sentences would
have to name their authors.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from edgemt.training.data import Pairs, read_pairs

# Pairs of each corpus, half of them in each direction.
CALIBRATION = {"clinical": 1900, "terms": 100}
HELDOUT = {"clinical": 600, "tico19": 400}
# Longer sentences are cut at clause marks: a small model that has seen short ones does better so. chrF on 100
# TICO-19 dev rows of more than 24 tokens, at limits of 20 / 28 / 40 / 64 / 120 (model of 14,133 steps):
# zh-en 32.5 / 31.7 / 30.5 / 28.0 / 26.5, en-zh 14.3 / 14.3 / 13.8 / 12.8 / 12.3.
MAX_SOURCE_TOKENS = 28
LICENCE = "CC-BY-SA-4.0"  # the strictest of the training data's: CC-CEDICT, openEHR, XQuAD


def chosen(pairs: Pairs, counts: dict[str, int], seed: int) -> list[tuple[str, str, str, str, str]]:
    """Rows of (source language, target language, source, target, corpus); the same every time."""
    picked = random.Random(seed)
    rows = []
    for corpus, count in counts.items():
        numbers = [i for i, name in enumerate(pairs.corpus) if name == corpus]
        for side in (0, 1):
            for i in sorted(picked.sample(numbers, min(count // 2, len(numbers)))):
                languages = pairs.languages[side], pairs.languages[1 - side]
                rows.append((*languages, pairs.texts[side][i], pairs.texts[1 - side][i], corpus))
    return rows


def write_tsv(path: Path, header: list[str], rows: list[tuple[str, ...]]) -> None:
    lines = ["\t".join(row[: len(header)]) for row in [tuple(header), *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.tsv and dev.tsv")
    args = parser.parse_args()
    header = ["source_lang", "target_lang", "source", "target"]
    train, dev = read_pairs(args.data / "train.tsv"), read_pairs(args.data / "dev.tsv")
    write_tsv(args.checkpoint / "calibration.tsv", header, chosen(train, CALIBRATION, 1))
    write_tsv(args.checkpoint / "heldout.tsv", [*header, "corpus"], chosen(dev, HELDOUT, 2))
    record = args.checkpoint / "edgemt.json"
    facts = {"licence": LICENCE} | json.loads(record.read_text(encoding="utf-8"))
    record.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    settings = args.checkpoint / "generation_config.json"
    generation = json.loads(settings.read_text(encoding="utf-8")) | {"max_source_tokens": MAX_SOURCE_TOKENS}
    settings.write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
