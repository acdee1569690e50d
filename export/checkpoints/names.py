"""Names of weights as the model has them: without what wrappers put before them, each tensor once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.model import Model
from edgemt.export.checkpoints.tensors import Stored

# Modules that stand around others: torch.compile, FSDP, activation checkpointing, Lightning Fabric.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
FORGOTTEN = "rotary_emb.inv_freq"  # old Llama checkpoints store it, and no model reads it any more


def plain(tensors: Mapping[str, Stored], known: Mapping[str, object] | None = None) -> dict[str, Stored]:
    """The weights without the prefixes of wrappers, DDP's `module.` among them.

    Whatever else stands before most names that are `known` (`net.`, the attribute of a wrapper class) goes
    too. Raises EdgemtError if two weights would get one name.
    """
    names = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in tensors}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {old: new.removeprefix("module.") for old, new in names.items()}
    if known:
        before = Counter(prefix for name in names.values() for prefix in _prefixes(name, known))
        prefix = max(before, key=lambda prefix: (before[prefix], -len(prefix)), default="")
        names = {old: new.removeprefix(prefix) for old, new in names.items()}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise EdgemtError(
            f"the checkpoint holds {twice[0]} twice, with and without a wrapper's prefix; "
            "save the state dict of one model"
        )
    return {names[name]: stored for name, stored in tensors.items() if not name.endswith(FORGOTTEN)}


def _prefixes(name: str, known: Mapping[str, object]) -> Iterator[str]:
    """What stands before a known name at the end of this one; "" if it is known itself."""
    parts = name.split(".")
    for first in range(len(parts)):
        rest = ".".join(parts[first:])
        if rest in known:
            yield name.removesuffix(rest)


def once(tensors: Mapping[str, Stored], model: Model) -> dict[str, Stored]:
    """Each tensor under the first of the names that share it; of several copies the one in FP32."""
    chosen = dict(tensors)
    for group in model.tied:
        copies = [chosen.pop(name) for name in group if name in chosen]
        if copies:
            chosen[group[0]] = min(copies, key=lambda stored: stored.dtype != "float32")
    return chosen
