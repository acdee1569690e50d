"""What HY-MT's models should look like (expected.json), and what a model of these numbers looks like."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemt.verify.sections import Check

FILE = Path(__file__).with_name("expected.json")
CLOSE = 1e-4  # relative, of numbers that files write with few digits


@dataclass(frozen=True)
class Expected:
    """One model's entry. `tokens` and `endings` by their text; `endings`: ids that may follow a prompt."""

    name: str
    source: str
    values: Mapping[str, Any]
    tokens: Mapping[str, int]
    endings: Mapping[str, list[int]]
    licence: str


def expected_of(found: Mapping[str, Any]) -> Expected | None:
    """The entry whose `when` these numbers fulfil; None if it is no model that something is known of."""
    for name, entry in json.loads(FILE.read_text(encoding="utf-8")).items():
        when = entry.pop("when")
        if all(found.get(key) == value for key, value in when.items()):
            return Expected(name, **(entry | {"values": when | entry["values"]}))
    return None


def compared(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[Check]:
    """A check for each expected value that is known of this model."""
    return [
        Check(f"{key} is {same(found[key], value)[1]}", same(found[key], value)[0], found[key], value)
        for key, value in expected.items()
        if found.get(key) is not None
    ]


def same(found: Any, expected: Any) -> tuple[bool, str]:
    if isinstance(expected, float):
        equal = isinstance(found, int | float) and math.isclose(found, expected, rel_tol=CLOSE)
    else:
        equal = found == expected
    return equal, "as expected" if equal else "different from what was expected"


def rope_base(config: Mapping[str, Any], head_dim: int) -> float:
    """The base of RoPE's frequencies that is used: HunYuan's "dynamic" scaling multiplies it by
    alpha^(d / (d - 2)), as transformers does (modeling_hunyuan_v1_dense); a GGUF file has it so already."""
    scaling = config.get("rope_scaling") or {}
    base, alpha = float(config.get("rope_theta") or 10000.0), scaling.get("alpha")
    kind = scaling.get("rope_type", scaling.get("type"))
    return base * alpha ** (head_dim / (head_dim - 2)) if alpha and kind == "dynamic" else base
