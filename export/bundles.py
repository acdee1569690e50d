"""From lowered graphs to a sealed bundle: files, layer table, manifest."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemt import __version__
from edgemt.bundle import seal
from edgemt.export.checkpoints.read import Checkpoint
from edgemt.export.families import family_of
from edgemt.export.graphs.graphset import Canonical, GraphSet, Layer
from edgemt.manifest import Graph, Manifest

GENERATION = {"beam": 1, "max_length_factor": 2.0, "max_length_extra": 16}
# What generation_config.json may say -> the manifest's name of it.
GENERATION_KEYS = {
    "num_beams": "beam",
    "length_penalty": "length_penalty",
    "max_source_tokens": "max_source_tokens",
}
# What it may say of sampling, under the same names here: used on request only, and not of encoder-decoders.
SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")
TOOLS = ("torch", "transformers", "onnx", "onnxruntime", "numpy", "sentencepiece", "safetensors")


def write_bundle(
    directory: Path,
    checkpoint: Checkpoint,
    canonical: Canonical,
    lowered: GraphSet,
    *,
    name: str,
    target: str,
    precision: str,
    layers: list[Layer],
    languages: list[list[str]],
    provenance: dict[str, Any] | None = None,
    gate: dict[str, Any] | None = None,
) -> Manifest:
    """Write graphs, weights, tokenizer and manifest into the empty `directory`, and seal it."""
    family, files, given = family_of(checkpoint), lowered.write(directory), checkpoint.generation
    manifest = Manifest(
        name=name,
        family=family.NAME,
        languages=languages,
        target=target,
        precision=precision,
        graphs={
            role: Graph(file, lowered.inputs(role), lowered.outputs(role)) for role, file in files.items()
        },
        states=canonical.states,
        model=canonical.model,
        generation=generation(given, family.NAME),
        features=canonical.features,
        licence=checkpoint.licence,
        provenance={**base_provenance(checkpoint), **(provenance or {})},
        gate=gate or {},
        layers=[layer._asdict() for layer in layers],
        **family.write_tokenizer(checkpoint, directory),
    )
    return seal(directory, manifest)


def generation(given: Mapping[str, Any], family: str) -> dict[str, Any]:
    """How to search, of what the checkpoint's generation_config.json says."""
    said = {ours: given[theirs] for theirs, ours in GENERATION_KEYS.items() if given.get(theirs) is not None}
    drawn = {name: given[name] for name in SAMPLING if given.get(name) is not None}
    return {**GENERATION, **said, **({"sampling": drawn} if drawn and family == "causal" else {})}


def base_provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where the weights came from, how they were trained, and with what they were exported."""
    return {
        "checkpoint": {
            "name": checkpoint.name,
            "sha256": checkpoint.sha256,
            "form": checkpoint.form,
            "dtypes": list(checkpoint.dtypes),
            "architecture": checkpoint.architecture,
        },
        "training": checkpoint.training(),
        "tools": {
            "edgemt": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in TOOLS},
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
