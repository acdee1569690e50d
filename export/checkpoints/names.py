"""Names of weights as the model has them: without what wrappers put before them, each tensor once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.model import Model
from edgemt.export.checkpoints.tensors import Stored

# Modules that stand around others: torch.compile, FSDP, activation checkpointing, Lightning Fabric.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
FORGOTTEN = "rotary_emb.inv_freq"  # old Llama checkpoints store it, and no model reads it any more


def plain(tensors: Mapping[str, Stored], known: Mapping[str, object] | None = None) -> dict[str, Stored]:
    """The weights without the prefixes of wrappers, DDP's `module.` among them.

    The commonest first part (the attribute of a wrapper class, as in `net.lm_head.weight`) goes too, if more
    names are `known` without it. Raises EdgemtError if two weights would get one name.
    """
    names = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in tensors}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {old: new.removeprefix("module.") for old, new in names.items()}
    while known and names:
        first, _ = Counter(name.partition(".")[0] for name in names.values()).most_common(1)[0]
        shorter = {old: new.removeprefix(f"{first}.") for old, new in names.items()}
        if _count(shorter.values(), known) <= _count(names.values(), known):
            break
        names = shorter
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise EdgemtError(
            f"the checkpoint holds {twice[0]} twice, with and without a wrapper's prefix; "
            "save the state dict of one model"
        )
    return {names[name]: stored for name, stored in tensors.items() if not name.endswith(FORGOTTEN)}


def _count(names: Iterable[str], known: Mapping[str, object]) -> int:
    return sum(name in known for name in names)


def once(tensors: Mapping[str, Stored], model: Model) -> dict[str, Stored]:
    """Each tensor under the first of the names that share it; of several copies the one in FP32."""
    chosen = dict(tensors)
    for group in model.tied:
        copies = [chosen.pop(name) for name in group if name in chosen]
        if copies:
            chosen[group[0]] = min(copies, key=lambda stored: stored.dtype != "float32")
    return chosen
