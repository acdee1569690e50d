"""DeepSpeed without ZeRO (stage 0): one file of model states, with the optimizer and its FP32 masters in it.

`mp_rank_00_model_states.pt` has the half weights by name in `module`. Without their names the masters are in
`fp32_groups` (lists, of FP16_UnfusedOptimizer) or end to end in `fp32_groups_flat` (of FP16_Optimizer), in
BF16 as well. Without mixed precision there are none: the module is in FP32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.forms import deepspeed, trainer
from edgemt.export.checkpoints.masters import match, match_flat
from edgemt.export.checkpoints.pickles import load_pickle
from edgemt.export.checkpoints.rounding import ROUND, unchanged
from edgemt.export.checkpoints.tensors import Weights, of_tensor

FILE = "mp_rank_00_model_states.pt"


def found(path: Path) -> bool:
    """The file, its folder, or a folder whose `latest` names that, if no rank left masters of ZeRO's."""
    return _file(path).is_file() and not deepspeed.holds_masters(_file(path).parent)


def read(path: Path) -> Weights:
    """The masters, by the names of the weights that they round to. EdgemtError for one without a proof."""
    file = _file(path)
    loaded = load_pickle(file)
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get("module"), Mapping):
        raise EdgemtError(f"{file} has no module: it is not DeepSpeed's; save the model with save_pretrained")
    if loaded.get("param_shapes") is not None:
        raise deepspeed.without_masters(file.parent)
    model = {
        name: of_tensor(tensor, f"{file.name} (module)")
        for name, tensor in loaded["module"].items()
        if isinstance(tensor, torch.Tensor)
    }
    optimizer = loaded.get("optimizer")
    optimizer = optimizer if isinstance(optimizer, Mapping) else {}
    halves = {stored.dtype for stored in model.values()} & ROUND.keys()
    to, source = ROUND.get(min(halves, default=""), unchanged), f"FP32 masters in {file.name}"
    masters = match(model, optimizer.get("fp32_groups") or [], source, to)
    masters |= match_flat(model, optimizer.get("fp32_groups_flat") or [], source, to)
    amp = deepspeed.facts(loaded, optimizer.get("cur_scale"))
    kind = (
        f"none: the model itself was trained in {min(halves)}" if halves else "the model's own FP32 weights"
    )
    amp["masters"] = f"FP32 masters of {len(masters)} weights, in the optimizer" if masters else kind
    home = path if path.is_dir() else path.parent
    amp |= trainer.beside(home, masters or model, amp.get("steps"))
    return Weights("DeepSpeed", {**model, **masters}, (file,), amp, home)


def _file(path: Path) -> Path:
    if path.is_file():
        return path if path.name == FILE else path / FILE
    return path / deepspeed.tag(path / "latest") / FILE
