"""`edgemt inspect` of a checkpoint: form, architecture, types, where the weights come from, what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgemt.export.checkpoints.facts import listing
from edgemt.export.checkpoints.problems import CURES, Findings
from edgemt.export.checkpoints.read import Checkpoint, open_checkpoint
from edgemt.export.families import ARCHITECTURES
from edgemt.inspect_command import flat, size, table

HALF = 65504  # the largest FP16 value


def inspect(path: Path, config_from: Path | None = None, base: Path | None = None) -> dict[str, Any]:
    """All that is known of the checkpoint at `path`, as JSON. Raises EdgemtError if it cannot be read."""
    checkpoint = open_checkpoint(path, config_from, base)
    findings = checkpoint.examine()
    stored = checkpoint.stored
    return {
        "checkpoint": checkpoint.name,
        "form": checkpoint.form,
        "architecture": checkpoint.architecture,
        "exportable": checkpoint.architecture in ARCHITECTURES,
        "parameters": sum(weight.size for weight in stored.values()),
        "dtypes": shares(checkpoint, "dtype"),
        "sources": shares(checkpoint, "source"),
        "files": [file.name for file in checkpoint.weights.files],
        "training": dict(checkpoint.amp),
        "licence": checkpoint.licence,
        "problems": dict(findings.problems),
        "notes": list(notes(checkpoint, findings)),
        "tensors": {
            name: {"shape": list(weight.shape), "dtype": weight.dtype, "source": weight.source}
            for name, weight in stored.items()
        },
    }


def shares(checkpoint: Checkpoint, attribute: str) -> dict[str, dict[str, int]]:
    """Tensors, parameters and bytes by stored type or by source."""
    found: dict[str, dict[str, int]] = {}
    for weight in checkpoint.stored.values():
        share = found.setdefault(getattr(weight, attribute), {"tensors": 0, "parameters": 0, "bytes": 0})
        share["tensors"] += 1
        share["parameters"] += weight.size
        share["bytes"] += weight.nbytes
    return found


def notes(checkpoint: Checkpoint, findings: Findings) -> Iterator[str]:
    """What is not wrong but good to know before an export."""
    if checkpoint.model is None:
        yield (
            f"transformers does not know {checkpoint.architecture}: names and shapes were not compared with "
            "config.json"
        )
    elif checkpoint.architecture not in ARCHITECTURES:
        yield f"{checkpoint.architecture} has no canonical graphs yet: edgemt export refuses it"
    matrices = [
        value
        for name, value in findings.values.items()
        if len(checkpoint.named[name].shape) > 1
        and checkpoint.named[name].dtype == "float32"
        and value.largest
    ]
    for title, rounded in (("FP16", "half"), ("BF16", "brain")):
        if matrices and all(getattr(value, rounded) for value in matrices):
            yield f"stored as FP32, but all matrices hold {title} values only: rounded before they were saved"
    large = [name for name, value in findings.values.items() if value.largest > HALF]
    if large:
        yield f"above {HALF}, which FP16 cannot hold (export with --int8 or --fp32): {listing(large)}"


def description(facts: dict[str, Any], path: Path, all_tensors: bool) -> Iterator[str]:
    """The lines of the report."""
    rows = {
        "checkpoint": f"{facts['checkpoint']} ({path})",
        "form": facts["form"],
        "architecture": facts["architecture"],
        "parameters": f"{facts['parameters']:,} in {len(facts['tensors'])} tensors",
        "licence": facts["licence"],
    }
    yield from table(list(rows.items()))
    for title, key in (("stored as", "dtypes"), ("weights from", "sources")):
        yield f"\n{title}"
        yield from table(
            [
                ("  " + name, f"{share['tensors']} tensors", f"{share['parameters']:,}", size(share["bytes"]))
                for name, share in facts[key].items()
            ]
        )
    if facts["training"]:
        yield "\ntraining"
        yield from table([("  " + key, flat(value)) for key, value in facts["training"].items()])
    if all_tensors:
        yield "\ntensors"
        yield from table(
            [
                ("  " + name, flat(weight["shape"]), weight["dtype"], weight["source"])
                for name, weight in facts["tensors"].items()
            ]
        )
    if facts["notes"]:
        yield "\nnotes"
        yield from (f"  {note}" for note in facts["notes"])
    if facts["problems"]:
        yield "\nproblems"
        for title, names in facts["problems"].items():
            yield f"  {title} ({len(names)}): {CURES[title]}"
            yield from (f"    {name}" for name in names)
    else:
        yield "\nproblems: none"
