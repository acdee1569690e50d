"""Which FP32 master belongs to which weight, where an optimizer kept the masters without their names.

A master is given a name by proof only: rounded to the model's type (`to`: FP16, or BF16) it must equal the
weight of that name in every value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.rounding import fingerprint, half
from edgemt.export.checkpoints.tensors import Array, Stored, of_tensor

Rounding = Callable[[Array], Array]


def match(
    rounded: Mapping[str, Stored], groups: Sequence[Sequence[torch.Tensor]], source: str, to: Rounding = half
) -> dict[str, Stored]:
    """The master of each weight that has one, from the optimizer's `groups` of masters.

    Weights whose rounded values are equal (several biases of zeros) are told apart by their order, where the
    others show that the optimizer kept the model's. Raises EdgemtError if a master remains without a proof.
    """
    names: dict[bytes, list[str]] = defaultdict(list)
    shapes = {tuple(master.shape) for group in groups for master in group}
    for name, stored in rounded.items():
        if stored.shape in shapes:
            names[_key(stored, to)].append(name)
    order = {name: place for place, name in enumerate(rounded)}
    matched: dict[str, Stored] = {}
    for group in groups:
        masters: dict[bytes, list[Stored]] = defaultdict(list)
        for tensor in group:
            master = of_tensor(tensor, source)
            masters[_key(master, to)].append(master)
        sure = [order[names[key][0]] for key, found in masters.items() if len(names[key]) == len(found) == 1]
        for key, found in masters.items():
            equal = len({fingerprint(master) for master in found}) == 1
            ordered = len(names[key]) == len(found) and sure == sorted(sure)
            if not names[key] or not (equal or ordered) or matched.keys() & names[key]:
                raise EdgemtError(_unproved(source, found[0], names[key]))
            matched |= dict(zip(names[key], found * len(names[key]) if equal else found, strict=False))
    return matched


def match_flat(
    rounded: Mapping[str, Stored], flats: Sequence[torch.Tensor], source: str, to: Rounding = half
) -> dict[str, Stored]:
    """The same for masters that lie end to end in one flat tensor a group, in the model's order."""
    left, matched = dict(rounded), {}
    for flat in flats:
        start = 0
        while start < flat.numel():
            fits = (name for name, stored in left.items() if _begins(flat, start, stored, source, to))
            name = next(fits, None)
            if name is None:
                raise EdgemtError(_unproved(source, of_tensor(flat[start:], source), []))
            matched[name] = _slice(flat, start, left.pop(name), source)
            start += matched[name].size
    # Copies of a tied weight: the optimizer has its master once.
    by_values = {(stored.shape, fingerprint(stored, to)): stored for stored in matched.values()}
    for name, stored in left.items():
        if master := by_values.get((stored.shape, fingerprint(stored))):
            matched[name] = master
    return matched


def _key(stored: Stored, to: Rounding) -> bytes:
    return repr(stored.shape).encode() + fingerprint(stored, to)


def _begins(flat: torch.Tensor, start: int, stored: Stored, source: str, to: Rounding) -> bool:
    """Whether the master of this weight is at `start`."""
    if not stored.size or start + stored.size > flat.numel():
        return False
    head = to(flat[start : start + 64].detach().numpy())[: stored.size]
    if not (head == next(stored.pieces())[:64]).all():
        return False
    return fingerprint(_slice(flat, start, stored, source), to) == fingerprint(stored, to)


def _slice(flat: torch.Tensor, start: int, stored: Stored, source: str) -> Stored:
    return replace(of_tensor(flat[start : start + stored.size], source), shape=stored.shape)


def _unproved(source: str, master: Stored, names: Sequence[str]) -> str:
    shape = list(master.shape)
    what = f"it rounds to {' and '.join(names)} alike" if names else "no weight of the model is its rounding"
    return (
        f"an {source} of shape {shape} cannot be given a name ({what}); load the checkpoint in its own "
        "trainer, copy the masters into the model, and save model.float().state_dict()"
    )
