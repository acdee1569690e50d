"""Instructions of a warm translation by length bucket, on an emulated Cortex-A76.

    python -m tests.device.count BUNDLE [--beam N]… [--bucket N]… [--texts N] [--peer CTRANSLATE2_MODEL]

Prints a table. With --write the figures become edgemt/data/instructions.json and docs/emulated.md's table.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path
from typing import Any

from edgemt import text as cutting
from edgemt.bench.workload import BUCKETS, Sentence, read_workload
from edgemt.bundle import DEFAULT, MANIFEST, open_bundle
from edgemt.errors import EdgemtError
from edgemt.translator import Translator
from tests.device import blocks, figures
from tests.device.figures import PEER, Row, Text
from tests.device.floor import floor


def choose(buckets: list[int], texts: int) -> list[Sentence]:
    """`texts` texts a direction from each bucket of the shipped workload, spread over it."""
    chosen = []
    sentences = read_workload(None).sentences
    for bucket in buckets:
        for language in ("zh", "en"):
            group = [s for s in sentences if s.bucket == bucket and s.source_lang == language]
            chosen += [group[i * len(group) // texts] for i in range(min(texts, len(group)))]
    return chosen


@cache
def reference() -> Translator:
    """The default bundle here, for its tokenizer and sentence splitter."""
    return Translator(open_bundle(DEFAULT))


def sentences_of(sentence: Sentence) -> list[str]:
    """The sentences that edgemt cuts the text into, without what it copies."""
    translator = reference()
    pieces = cutting.pieces(cutting.well_formed(sentence.source), str(sentence.source_lang), translator.fits)
    return [piece.text for piece in pieces if piece.translate]


def jobs_of(model: Path, beam: int, texts: list[Sentence], repeats: int) -> dict[str, Any]:
    """What guest.py is to do; a model with a manifest is a bundle, one with model.bin CTranslate2's."""
    manifest = reference().bundle.manifest
    rows: list[dict[str, Any]] = [
        {"source": s.source, "source_lang": s.source_lang, "target_lang": s.target_lang} for s in texts
    ]
    job = {"engine": "edgemt", "model": str(model.resolve()), "beam": beam, "repeats": repeats, "texts": rows}
    if (model / MANIFEST).is_file():
        return job
    pieces = reference().tokenizer.pieces
    for row, sentence in zip(rows, texts, strict=True):
        row["sentences"] = sentences_of(sentence)
        prefix = manifest.model.source_prefix[f"{sentence.source_lang}-{sentence.target_lang}"]
        row["prefix"] = pieces[prefix[0]]
    return job | {
        "engine": "ctranslate2",
        "compute_type": compute_type(model),
        "tokenizer": str(DEFAULT / manifest.tokenizer["source"]),
        "suppress": [pieces[i] for i in manifest.model.suppress],
    }


def compute_type(model: Path) -> str:
    """Of CTranslate2: the type that the weights have on disk ("int8" or "float32"), by their size."""
    parameters = sum(layer["bytes"] for layer in reference().bundle.manifest.layers)
    return "int8" if (model / "model.bin").stat().st_size < 2 * parameters else "float32"


def count_model(model: Path, beam: int, texts: list[Sentence], repeats: int) -> Row:
    """Count one model on `texts`. Raises EdgemtError, also for a folder that holds neither kind of model."""
    ours = (model / MANIFEST).is_file()
    if not ours and not (model / "model.bin").is_file():
        raise EdgemtError(f"{model} is neither a bundle's folder nor CTranslate2's; export or convert one")
    answer = blocks.count(jobs_of(model, beam, texts, repeats))
    found = []
    for i, sentence in enumerate(texts):
        parts = [len(reference().tokenizer.encode(part)) for part in sentences_of(sentence)]
        counts = answer.counts[i]
        totals = [one.total for one in counts]
        found.append(
            Text(
                bucket=int(sentence.bucket or 0),
                source_tokens=sum(parts),
                target_tokens=answer.target_tokens[i],
                translation=answer.translations[i],
                counts=blocks.mean(counts),
                spread=(max(totals) - min(totals)) / max(totals),
                floor=floor(model if ours else DEFAULT, parts, answer.target_tokens[i], beam),
            )
        )
    if ours:
        manifest = open_bundle(model).manifest
        return Row(manifest.name, manifest.digest, manifest.precision, beam, answer.tools, found)
    return Row(PEER, "", compute_type(model), beam, answer.tools, found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path, default=[DEFAULT], metavar="MODEL")
    parser.add_argument("--beam", type=int, action="append", help="default: 1, which is greedy")
    parser.add_argument("--bucket", type=int, action="append", choices=BUCKETS, help="default: all")
    parser.add_argument("--texts", type=int, default=3, help="texts a bucket and direction (default: 3)")
    parser.add_argument("--repeats", type=int, default=2, help="default: 2")
    parser.add_argument("--objects", action="store_true", help="also instructions by mapped file")
    parser.add_argument(
        "--write", action="store_true", help=f"into {figures.DATA.name} and {figures.PAGE.name}"
    )
    args = parser.parse_args()
    texts = choose(args.bucket or list(BUCKETS), args.texts)
    print("millions of instructions, means a text; emulated Cortex-A76")
    for beam in args.beam or [1]:
        for model in args.models:
            row = count_model(model, beam, texts, args.repeats)
            print(figures.summary(row), flush=True)
            if args.objects:
                objects = blocks.mean([text.counts for text in row.texts]).objects
                for name, number in sorted(objects.items(), key=lambda item: -item[1])[:9]:
                    print(f"         {number / 1e6:7.2f}  {name}")
            if args.write:
                figures.write_page(figures.merge([row]))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgemtError as error:
        sys.exit(f"count: {error}")
