"""Which tensors 8 bits hurt most, so that an export that fails its gate can name them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from edgemt.calibration.quantspec import QuantSpec


class Sensitivity(NamedTuple):
    """A tensor and its signal to quantisation noise ratio (SQNR) over its chosen range; lower is worse.

    Each bit is worth 6.02 dB: 8 bits over a uniform distribution give 48 dB, over a normal one about 40.
    """

    tensor: str
    role: str
    sqnr_db: float


def worst_layers(spec: QuantSpec, tensors: Iterable[str], n: int = 5) -> list[Sensitivity]:
    """Those `n` of `tensors` with the lowest SQNR, worst first.

    Tensors that were all zero have none, nor have those that were not calibrated (what enters a head).
    """
    known = [
        Sensitivity(name, spec.roles[name], ratio)
        for name in tensors
        if (ratio := spec.sqnr_db.get(name)) is not None
    ]
    return sorted(known, key=lambda entry: entry.sqnr_db)[:n]
