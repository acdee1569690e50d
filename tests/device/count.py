"""Instructions of a warm translation by length bucket, on an emulated Cortex-A76.

    python -m tests.device.count BUNDLE [--beam N]… [--bucket N]… [--texts N] [--peer CTRANSLATE2_MODEL]

Prints a table. With --write the figures become edgemt/data/instructions.json and docs/emulated.md's table.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgemt.bench.workload import BUCKETS, Sentence, read_workload
from edgemt.bundle import DEFAULT, MANIFEST, open_bundle
from edgemt.errors import EdgemtError
from edgemt.manifest import Manifest
from edgemt.translator import Translator
from tests.device import blocks
from tests.device.blocks import Counts

PER_DOT = 16  # multiplications of one SDOT


@dataclass(frozen=True)
class Text:
    """A text, counted."""

    bucket: int
    source_tokens: int
    target_tokens: int
    translation: str
    counts: Counts  # mean of the repeats
    spread: float  # the largest difference between repeats, relative to the mean
    floor: int  # instructions, see `floor`


@dataclass(frozen=True)
class Row:
    """A model at a beam width."""

    name: str
    digest: str
    precision: str
    beam: int
    tools: dict[str, str]
    texts: list[Text]


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
    from edgemt import text as texts

    pieces = texts.pieces(texts.well_formed(sentence.source), str(sentence.source_lang), translator.fits)
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
        "compute_type": "int8" if (model / "model.bin").stat().st_size < 20e6 else "float32",
        "tokenizer": str(DEFAULT / manifest.tokenizer["source"]),
        "suppress": [pieces[i] for i in manifest.model.suppress],
    }


def floor(manifest: Manifest, sentence_tokens: list[int], target_tokens: int, beam: int) -> int:
    """The least instructions for the matrix products with weights: for each 16 multiplications one SDOT and
    one 16-byte load of weights. An encoder row is a source token, prefix and end included; a step row is a
    target token of each hypothesis, ends included."""
    weights = {"encoder": 0, "step": 0}
    for layer in manifest.layers:
        if layer["op"] == "MatMul":
            size = {"int8": 1, "float32": 4, "fp32": 4}.get(layer["precision"], 1)
            weights[layer["graph"]] += layer["bytes"] // size
    encoder_rows = sum(sentence_tokens) + 2 * len(sentence_tokens)
    step_rows = (target_tokens + len(sentence_tokens)) * beam
    return 2 * (encoder_rows * weights["encoder"] + step_rows * weights["step"]) // PER_DOT


def count_model(model: Path, beam: int, texts: list[Sentence], repeats: int) -> Row:
    """Count one model on `texts`. Raises EdgemtError, also for a folder that holds neither kind of model."""
    ours = (model / MANIFEST).is_file()
    if not ours and not (model / "model.bin").is_file():
        raise EdgemtError(f"{model} is neither a bundle's folder nor CTranslate2's; export or convert one")
    answer = blocks.count(jobs_of(model, beam, texts, repeats))
    manifest = open_bundle(model).manifest if ours else reference().bundle.manifest
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
                floor=floor(manifest, parts, answer.target_tokens[i], beam),
            )
        )
    if ours:
        return Row(manifest.name, manifest.digest, manifest.precision, beam, answer.tools, found)
    precision = "int8" if (model / "model.bin").stat().st_size < 20e6 else "fp32"
    return Row("ctranslate2", "", precision, beam, answer.tools, found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path, default=[DEFAULT], metavar="MODEL")
    parser.add_argument("--beam", type=int, action="append")
    parser.add_argument("--bucket", type=int, action="append", choices=BUCKETS)
    parser.add_argument("--texts", type=int, default=3, help="texts a bucket and direction (default: 3)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--objects", action="store_true", help="also instructions by mapped file")
    args = parser.parse_args()
    texts = choose(args.bucket or list(BUCKETS), args.texts)
    rows = [
        count_model(model, beam, texts, args.repeats) for beam in args.beam or [1] for model in args.models
    ]
    print("millions of instructions, means a text; emulated Cortex-A76")
    for row in rows:
        print(f"{row.name} {row.precision} beam {row.beam}")
        for bucket in sorted({text.bucket for text in row.texts}):
            some = [text for text in row.texts if text.bucket == bucket]
            c = blocks.mean([text.counts for text in some])
            low = np.mean([text.floor for text in some])
            print(
                f"  {bucket:3d}  {np.mean([t.source_tokens for t in some]):5.1f} -> "
                f"{np.mean([t.target_tokens for t in some]):5.1f}  total {c.total / 1e6:7.2f}  native "
                f"{c.native / 1e6:7.2f}  python {c.python / 1e6:5.2f}  dots {c.dots / 1e6:6.2f}  loads "
                f"{c.load_bytes / 1e6:6.1f} MB  floor {low / 1e6:6.2f}  native/floor {c.native / low:4.2f}  "
                f"spread {max(t.spread for t in some):.2%}"
            )
            if args.objects:
                for name, number in sorted(c.objects.items(), key=lambda x: -x[1])[:9]:
                    print(f"         {number / 1e6:7.2f}  {name}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgemtError as error:
        sys.exit(f"count: {error}")
