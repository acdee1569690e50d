"""Which variant ships: the fastest that passes the gate; of two as fast, the smaller, then the truer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgemt.export.clock import Latency

AS_SMALL = 0.02  # sizes that differ by less are equal


@dataclass
class Variant:
    """A lowered bundle on trial. `gate` is GateResult.to_json() of the calibration package."""

    name: str
    bytes: int
    gate: dict[str, Any] | None = None
    latency: Latency | None = None

    @property
    def passed(self) -> bool:
        return self.gate is None or bool(self.gate["passed"])

    @property
    def agreement(self) -> float:
        """Share of FP32's tokens that this variant gives too, over all directions."""
        directions = (self.gate or {}).get("directions", {}).values()
        return sum(d["tokens_equal"] for d in directions) / max(len(directions), 1)

    def to_json(self) -> dict[str, Any]:
        return {
            "bytes": self.bytes,
            "gate": self.gate,
            "latency": vars(self.latency) if self.latency else None,
        }


def choose(variants: Mapping[str, Variant]) -> tuple[str, str]:
    """The name of the variant to ship, and the reason in one sentence. `variants` have passed the gate."""
    ranked = sorted(variants.values(), key=lambda v: v.latency.ratio if v.latency else 1.0)
    best, why = ranked[0], f"is the {'only' if len(ranked) == 1 else 'fastest'} variant that passed the gate"
    for other in ranked[1:]:
        if not (best.latency and other.latency) or best.latency.ratio_high < other.latency.ratio_low:
            continue  # clearly slower
        if abs(best.bytes - other.bytes) > AS_SMALL * max(best.bytes, other.bytes):
            better, reason = other.bytes < best.bytes, "smaller"
        else:
            better, reason = other.agreement > best.agreement, "closer to FP32"
        winner, loser = (other, best) if better else (best, other)
        best, why = winner, f"passed the gate, is as fast as {loser.name} within the spread, and is {reason}"
    speed = f" ({best.latency.ratio:.2f} of FP32's time)" if best.latency else ""
    return best.name, f"{best.name} {why}{speed}."
