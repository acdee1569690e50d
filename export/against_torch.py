"""Parity of an export: the whole model at once, or, where memory is short, a few of its layers at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from edgemt.bundle import open_bundle
from edgemt.export import memory, parity
from edgemt.export.checkpoints.read import Checkpoint
from edgemt.export.depth import part
from edgemt.export.families import family_of
from edgemt.export.graphs.graphset import Canonical
from edgemt.export.parity import Parity
from edgemt.export.rows import Row
from edgemt.family import Request
from edgemt.manifest import Manifest
from edgemt.runtimes import open_program
from edgemt.translator import open_family

SENTENCES = 16
FEWER = 4  # of a model of so many weights that each of its steps takes a second
MANY_WEIGHTS = 1_000_000_000
# For a checkpoint that brings no calibration sentences, and is not quantised: parity only needs some text.
PLAIN_TEXT = (
    "我对青霉素过敏。",
    "Take one tablet twice a day after meals.",
    "Ich habe seit drei Tagen Fieber.",
)


def plain_rows(pairs: Sequence[Sequence[str]]) -> list[Row]:
    """Something to compare on, for a checkpoint that brings no sentences."""
    return [Row(pair[0], pair[1], text, "") for pair in pairs for text in PLAIN_TEXT]


def sentences(found: memory.Sizes) -> int:
    """How many sentences are compared."""
    return FEWER if found.total > MANY_WEIGHTS else SENTENCES


def compare(
    checkpoint: Checkpoint,
    parts: Sequence[tuple[int, int]],
    rows: Sequence[Row],
    fp32: Path | None,
    write: Callable[[Canonical], Path],
) -> Parity:
    """Compare FP32 graphs with torch on real sentences.

    Those of the bundle `fp32`; with `parts` (first layer, layers), each of which `write` makes a bundle of,
    those of a model of so many layers at a time, with the checkpoint's embedding and head.
    Raises EdgemtError if the difference is larger than FP32 arithmetic explains.
    """
    if not parts:
        assert fp32
        return _one(checkpoint, fp32, rows)
    found = []
    for first, layers in parts:
        cut = part(checkpoint, first, layers)
        directory = write(family_of(cut).build(cut, {}))
        found.append(_one(cut, directory, rows))
        shutil.rmtree(directory)
    return parity.together(found, told(parts))


def _one(checkpoint: Checkpoint, fp32: Path, rows: Sequence[Row]) -> Parity:
    manifest = open_bundle(fp32).manifest
    answers = parity.answers(checkpoint, manifest.model, sources(fp32, manifest, rows))
    memory.release()  # torch's model is gone
    return parity.compare(open_program(fp32, manifest), answers)


def sources(directory: Path, manifest: Manifest, rows: Sequence[Row]) -> list[list[int]]:
    """The rows as the bundle's program reads them, cut to half of what it takes."""
    family, most = open_family(directory, manifest), manifest.model.max_positions // 2
    return [family.source(Request(row.source, row.source_lang, row.target_lang), most) for row in rows]


def told(parts: Sequence[tuple[int, int]]) -> str:
    """What of the model was compared at once."""
    depth, most = sum(layers for _, layers in parts), max(layers for _, layers in parts)
    return (
        f"{len(parts)} parts of up to {most} of the {depth} layers, each with the embedding and the head "
        "(the whole does not fit into memory here)"
    )
