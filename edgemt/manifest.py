"""The bundle's manifest: the one contract between the workshop that exports and the device that runs.

Format versions are `MAJOR.MINOR`. A reader takes every bundle of its own major version: a minor version only
adds keys that an older reader may ignore; a change that it would misread raises the major version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgemt.errors import EdgemtError
from edgemt.runtimes.protocol import StateSpec

FORMAT = "edgemt-bundle"
FORMAT_VERSION = "1.0"


@dataclass(frozen=True)
class Graph:
    """One compiled graph. `inputs` and `outputs` are its tensor names in order."""

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """What decoding needs to know. `source_prefix` maps "zh-en" to the ids put before the source."""

    vocab_size: int
    eos_id: int
    pad_id: int
    unk_id: int
    start_id: int
    max_positions: int
    source_prefix: dict[str, list[int]]
    suppress: list[int] = field(
        default_factory=list
    )  # ids that are never an answer (padding, control tokens)


@dataclass(frozen=True)
class Manifest:
    """`files` maps every other file to {"sha256", "bytes"}; `digest` covers the manifest itself."""

    name: str
    family: str  # "seq2seq" (one encoder graph, one step graph), "causal" (one step graph)
    languages: list[list[str]]  # [["zh", "en"], …]: pairs it translates
    target: str  # "onnxruntime"
    precision: str  # "int8-static" | "int8-dynamic" | "int8-blocks" | "int4" | "fp32" | "fp16"
    graphs: dict[str, Graph]  # role -> graph
    states: list[StateSpec]
    model: Model
    tokenizer: dict[str, str]  # {"source": file, "target": file, "vocab": file}; causal: {"bpe": file}
    generation: dict[str, Any]  # defaults: {"beam": 1, "max_length_factor": 2.0, "max_length_extra": 16}
    features: dict[str, bool]
    licence: str
    provenance: dict[str, Any]
    gate: dict[str, Any]
    chat: dict[str, list[int]] = field(default_factory=dict)  # causal: ids before and after a prompt
    layers: list[dict[str, Any]] = field(
        default_factory=list
    )  # {"name", "graph", "op", "precision", "bytes"}
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: str = FORMAT
    format_version: str = FORMAT_VERSION
    digest: str = ""

    def to_json(self) -> str:
        """The text of manifest.json, with a fresh digest."""
        data = dataclasses.asdict(self)
        data["digest"] = digest(data)
        return json.dumps(data, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Parse and verify. Raises EdgemtError if it is damaged, not ours, or newer than this reader."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise EdgemtError(f"{where} is damaged (not JSON: {error}); copy the bundle again") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise EdgemtError(
                f"{where} is not the manifest of an edgemt bundle; give a folder made by edgemt export"
            )
        version = str(data.get("format_version", "?"))
        if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
            raise EdgemtError(
                f"{where} has bundle format {version}, and this edgemt reads {FORMAT_VERSION}; "
                "upgrade edgemt, or export the bundle again with this version"
            )
        if data.get("digest") != digest(data):
            raise EdgemtError(
                f"{where} was changed after it was written (its digest differs); copy the bundle again"
            )
        known = {f.name for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {key: value for key, value in data.items() if key in known}
        try:
            values["graphs"] = {
                role: Graph(g["file"], tuple(g["inputs"]), tuple(g["outputs"]))
                for role, g in data["graphs"].items()
            }
            values["states"] = [StateSpec.from_json(state) for state in data["states"]]
            values["model"] = Model(**data["model"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise EdgemtError(
                f"{where} lacks or misnames a field ({error}); export the bundle again"
            ) from None


def digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest without its own digest, keys sorted, no white space."""
    body = {key: value for key, value in data.items() if key != "digest"}
    canonical = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
