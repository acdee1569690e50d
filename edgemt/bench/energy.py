"""Energy for a text, from the looks at the board's power that fell into a contender's turns."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from edgemt.bench.measure import REST_S, Samples

LEAST_LOOKS = 5  # fewer say nothing


def energy(samples: Samples, place: int) -> dict[str, Any] | None:
    """Joules a text in a closed loop: mean power in a contender's turns times the mean time of its texts.

    None where the board tells no power, or the run was too short to see it. `idle_watts` is the power in the
    two seconds of rest before the clock started; `joules_per_text_above_idle` counts what is above it.
    """
    begins = [turn.begin_s for turn in samples.turns]

    def own(at_s: float) -> bool:
        """Whether the turn that went on then is the contender's: turns follow each other in time."""
        turn = samples.turns[max(bisect_right(begins, at_s) - 1, 0)]
        return turn.place == place and turn.begin_s <= at_s <= turn.end_s

    looks = [look.watts for look in samples.timeline if look.watts is not None and own(look.at_s)]
    if len(looks) < LEAST_LOOKS:
        return None
    # The first look of the rest may still be of the work before it.
    rest = [m.watts for m in samples.timeline if m.watts is not None and -REST_S * 0.8 <= m.at_s < 0]
    watts, seconds = sum(looks) / len(looks), float(samples.ms[place].mean()) / 1000
    idle = sum(rest) / len(rest) if rest else None
    return {
        "joules_per_text": watts * seconds,
        "joules_per_text_above_idle": None if idle is None else max(watts - idle, 0.0) * seconds,
        "watts": watts,
        "idle_watts": idle,
        "looks": len(looks),
    }
