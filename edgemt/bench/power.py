"""What the board draws, where its power chip tells: the Raspberry Pi 5's PMIC, through vcgencmd.

The sum over the rails that report a current and a voltage. That is what the board's parts draw, after the
PMIC's own loss and without what hangs at its 5 V pins and USB ports: less than a meter at the wall shows.
"""

from __future__ import annotations

import re

from edgemt.bench.facts import vcgencmd

RAIL = re.compile(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([\d.]+)[AV]")


def watts() -> float | None:
    """Watts now; None where no PMIC is to be read."""
    return total(vcgencmd("pmic_read_adc") or "")


def total(text: str) -> float | None:
    """Watts from the output of `vcgencmd pmic_read_adc`; None if it names no whole rail."""
    values: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for rail, unit, value in RAIL.findall(text):
        values[unit][rail] = float(value)
    rails = values["A"].keys() & values["V"].keys()
    return sum(values["A"][rail] * values["V"][rail] for rail in rails) if rails else None
