"""What is wrong with a checkpoint's weights: all of it at once, by name, with a piece of one in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgemt.export.checkpoints.facts import listing
from edgemt.export.checkpoints.model import Model
from edgemt.export.checkpoints.rounding import brain, half, same
from edgemt.export.checkpoints.tensors import Stored

FIT = "give the config.json and the weights of the same model"
TIES = "set tie_word_embeddings to false if they are meant to differ, or save one of them"
EARLIER = "the training diverged, so export an earlier checkpoint"
OVERFLOW = "export an earlier checkpoint, and train in BF16 or with FP32 masters"
# What may be wrong -> what to do about it.
CURES = {
    "missing": FIT,
    "unexpected": FIT,
    "mis-shaped": FIT,
    "different though config.json ties them": TIES,
    "NaN or infinite": EARLIER,
    "overflowed in FP16": OVERFLOW,
}
MISSING, UNEXPECTED, MISSHAPED, DIFFERENT, NOT_FINITE, OVERFLOWED = CURES


@dataclass(frozen=True)
class Values:
    """What one look at all values of a weight says."""

    nan: bool
    infinite: bool
    largest: float  # absolute, of the finite ones
    half: bool  # every value is an FP16 value: it was rounded to FP16, whatever it is stored as
    brain: bool  # every value is a BF16 value


@dataclass(frozen=True)
class Findings:
    """`problems`: what is wrong -> the weights concerned; `values` of every weight, by name."""

    problems: Mapping[str, list[str]]
    values: Mapping[str, Values] = field(default_factory=dict)

    def __str__(self) -> str:
        """All problems, and what to do about them."""
        found = "; ".join(f"{title}: {listing(names)}" for title, names in self.problems.items())
        return f"{found}: {'; '.join(dict.fromkeys(CURES[title] for title in self.problems))}"


def examine(tensors: Mapping[str, Stored], model: Model | None) -> Findings:
    """Compare names, shapes and copies with the `model` (if it is known), and look at every value."""
    values = {name: look(stored) for name, stored in sorted(tensors.items())}
    found = names_and_shapes(tensors, model) if model else {}
    bad = {name for name, value in values.items() if value.nan or value.infinite}
    overflowed = {name for name in bad if values[name].half and not values[name].nan}
    found |= {NOT_FINITE: sorted(bad - overflowed), OVERFLOWED: sorted(overflowed)}
    return Findings({title: names for title, names in found.items() if names}, values)


def names_and_shapes(tensors: Mapping[str, Stored], model: Model) -> dict[str, list[str]]:
    """What is missing, unexpected, of another shape, or there twice with two contents."""
    have = tensors.keys()
    copies = [[name for name in group if name in have] for group in model.tied]
    shared = {name for group in model.tied for name in group}
    alone = [name for name in model.shapes if name not in shared | model.computed]
    return {
        MISSING: sorted(
            [name for name in alone if name not in have]
            + [group[0] for group, found in zip(model.tied, copies, strict=True) if not found]
        ),
        UNEXPECTED: sorted(have - model.shapes.keys()),
        MISSHAPED: [
            f"{name} is {list(tensors[name].shape)} and should be {list(shape)}"
            for name, shape in model.shapes.items()
            if name in have and tensors[name].shape != shape
        ],
        DIFFERENT: [
            f"{found[0]} and {other}"
            for found in copies
            for other in found[1:]
            if tensors[other].shape == tensors[found[0]].shape and not same(tensors[found[0]], tensors[other])
        ],
    }


def look(stored: Stored) -> Values:
    """All values of a weight, piece by piece."""
    nan, infinite, largest, is_half, is_brain = False, False, 0.0, True, True
    for piece in stored.pieces():
        extreme = max(piece.max(initial=0), -piece.min(initial=0))  # NaN if there is one
        if not np.isfinite(extreme):
            nan = nan or bool(np.isnan(piece).any())
            infinite = infinite or bool(np.isinf(piece).any())
            piece = piece[np.isfinite(piece)]
            extreme = np.abs(piece).max(initial=0)
        largest = max(largest, float(extreme))
        is_half = is_half and np.array_equal(half(piece), piece)
        is_brain = is_brain and np.array_equal(brain(piece), piece)
    return Values(nan, infinite, largest, is_half, is_brain)
