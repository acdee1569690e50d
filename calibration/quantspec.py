"""What calibration found out: a range per activation, independent of any target. Kept as `quant.json`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemt.errors import EdgemtError

FORMAT = "edgemt-quant"
FORMAT_VERSION = "1.0"


def affine(low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """(scale, zero point) of the unsigned affine quantiser of `bits` over [low, high], low <= 0 <= high.

    Zero is exactly representable: value = (q - zero_point) * scale. An empty range gives (1.0, 0).
    The same rule as onnxruntime's `compute_scale_zp` for unsigned, asymmetric types.
    """
    levels = 2**bits - 1
    scale = (high - low) / levels
    if scale < np.finfo(np.float32).tiny:
        return 1.0, 0
    return scale, round(-low / scale)


@dataclass(frozen=True)
class QuantSpec:
    """`activations` maps each canonical tensor name to its range (low, high), low <= 0 <= high.

    It is to be quantised by `affine(low, high, bits)`. A tensor that was all zero has (0.0, 0.0).
    """

    activations: dict[str, tuple[float, float]]
    roles: dict[str, str]  # tensor -> role of the graph it lives in ("encoder", "step")
    observer: str  # a key of edgemt.calibration.observers.OBSERVERS
    sentences: int  # decoded
    steps: int  # decoder steps run
    source_sha256: str  # of the FP32 graphs that were run
    sentences_sha256: str  # of the calibration sentences
    sqnr_db: dict[str, float | None] = field(default_factory=dict)  # None where the tensor was all zero
    # Products that are not static: "rows", their activations by each row's magnitude; "blocks", weights in
    # blocks and activations as they are.
    schemes: dict[str, str] = field(default_factory=dict)
    scheme: str = "affine-unsigned"
    bits: int = 8

    def to_json(self) -> dict[str, Any]:
        """The content of quant.json."""
        head = {
            key: value for key, value in vars(self).items() if key not in ("activations", "roles", "sqnr_db")
        }
        activations = {
            name: {"role": self.roles[name], "low": low, "high": high, "sqnr_db": self.sqnr_db.get(name)}
            for name, (low, high) in self.activations.items()
        }
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **head, "activations": activations}

    def save(self, path: Path) -> None:
        """Write quant.json under its name only when whole. Raises EdgemtError if it cannot be written."""
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_text(
                json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
            )
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            cure = "free space or choose another folder"
            raise EdgemtError(f"{path} cannot be written ({error.strerror}); {cure}") from None

    @classmethod
    def load(cls, path: Path) -> QuantSpec:
        """Read quant.json. Raises EdgemtError if it is missing, damaged, not ours, or newer."""
        again = "run the calibration again"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise EdgemtError(f"{path} cannot be read ({error.strerror}); {again}") from None
        except ValueError as error:
            raise EdgemtError(f"{path} is damaged (not JSON: {error}); {again}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise EdgemtError(f"{path} is not an edgemt calibration result; {again}")
        version = str(data.get("format_version", "?"))
        if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
            raise EdgemtError(
                f"{path} has format {version}, and this edgemt reads {FORMAT_VERSION}; upgrade edgemt"
            )
        try:
            entries = data["activations"]
            fields = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
            fields |= {
                "activations": {name: (entry["low"], entry["high"]) for name, entry in entries.items()},
                "roles": {name: entry["role"] for name, entry in entries.items()},
                "sqnr_db": {name: entry["sqnr_db"] for name, entry in entries.items()},
            }
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise EdgemtError(f"{path} lacks or misnames a field ({error}); {again}") from None
