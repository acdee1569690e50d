"""The stage that decides how 4-bit weights are rounded."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

from edgemt.calibration.mixed import LOW, choose, sensitivities
from edgemt.calibration.rounding import answered, compensate
from edgemt.errors import UsageError
from edgemt.export import rows as tables
from edgemt.export.bundles import write_bundle
from edgemt.export.families import family_of
from edgemt.export.graphs.graphset import GraphSet
from edgemt.export.rows import Row
from edgemt.export.targets import Calibrated
from edgemt.family import Family
from edgemt.translator import open_family

if TYPE_CHECKING:
    from edgemt.export.run import Export

NO_ROWS = "there are no sentences to round over"


def round_weights(run: Export, rows: list[Row]) -> Calibrated:
    """By what `rows` make of the weights in the model; to the nearest if that is asked for, or without rows.

    Raises UsageError if GPTQ was asked for and there are no rows.
    """
    asked, block = run.request.rounding, run.request.int4_block
    if asked == "gptq" and not rows:
        raise UsageError(f"{NO_ROWS}; give some with --calibration FILE, or leave out --rounding")
    if asked == "nearest" or not rows:
        why = "as asked" if asked else NO_ROWS
        print(f"edgemt export: 4-bit weights are rounded to the nearest ({why})", file=sys.stderr)
        run.report["rounding"] = {"method": "nearest", "why": why}
        return Calibrated(block=block)
    most = run.request.calibration_sentences or family_of(run.checkpoint).CALIBRATION_SENTENCES
    rows = tables.interleaved(rows, most)
    with run.stage(f"rounding weights over {len(rows)} sentences"):
        texts = answered(tokenizer(run), run.canonical.model, rows)
        bits: dict[str, int] = {}
        if run.request.int4_budget > LOW:
            bits = choose(sensitivities(run.canonical, texts, block), run.request.int4_budget)
        found = compensate(run.canonical, texts, bits, block)
    run.report["rounding"] = {**found.to_json(), "sentences_sha256": tables.sha256(rows)}
    return Calibrated(rounding=found.rounding, bits=bits, block=block)


def tokenizer(run: Export) -> Family:
    """The model's way to make tokens of a request: a bundle without any graph."""
    directory = run.work / "tokenizer"
    directory.mkdir()
    manifest = write_bundle(
        directory,
        run.checkpoint,
        dataclasses.replace(run.canonical, graphs={}, weights={}, states=[]),
        GraphSet({}),
        name=run.report["name"],
        target=run.request.target,
        precision="fp32",
        layers=[],
        languages=run.pairs,
    )
    return open_family(directory, manifest)
