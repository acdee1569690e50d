"""DeepSpeed's ZeRO checkpoints, stages 1 to 3: FP32 masters that lie flat, a part of them on each rank.

A folder of a step holds mp_rank_00_model_states.pt (stages 1 and 2) or one zero_pp_rank_R_… a rank (stage 3):
names and shapes of the trained parameters in the order of the optimizer's groups, buffers, frozen parameters,
names that share a parameter; and one *zero_pp_rank_R_mp_rank_00_optim_states.pt a rank with the masters:

- stages 1 and 2: all parameters of a group one after the other, cut into as many parts as there are ranks.
  The end is padded, which DeepSpeedZeroOptimizer takes off again on saving and BF16_Optimizer does not;
- stage 3: each parameter is cut by itself, into parts of ceil(size / ranks); the last ones are padded.

`latest` in the folder above names the step's folder. Written from DeepSpeed 0.19.8's own checkpoints and the
layout that its zero_to_fp32.py documents. Its `param_slice_mappings` are not used: they are wrong where the
gradients go round robin.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.facts import listing
from edgemt.export.checkpoints.forms import accelerate, trainer
from edgemt.export.checkpoints.pickles import Inert, load_pickle
from edgemt.export.checkpoints.tensors import Stored, Weights, joined, of_tensor

OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
CONSOLIDATE = "consolidate it where DeepSpeed is installed (zero_to_fp32.py in its folder) and give that"
UNIVERSAL = "zero/*/fp32.pt"
# What a folder may hold that edgemt does not join -> what that is.
OTHER_LAYOUTS = {
    UNIVERSAL: "is a universal checkpoint of DeepSpeed's",
    "*expert_*": "shards experts over ranks",
    "expp_rank_*": "shards experts over ranks",
    "*mp_rank_01_*": "is split for tensor parallelism",
}


@dataclass(frozen=True)
class Step:
    """The files of one saved step: masters and model states by rank, opened but not read."""

    folder: Path
    stage: int
    optimizers: list[Mapping[str, Any]]  # `optimizer_state_dict` of each rank
    models: list[Mapping[str, Any]]  # one, or at stage 3 one a rank
    files: tuple[Path, ...]  # those of `models`, then those of `optimizers`

    def need(self, record: Mapping[str, Any], key: str) -> Any:
        if record.get(key) is None:
            raise EdgemtError(f"{self.folder} has no {key}: it is not laid out as ZeRO is; {CONSOLIDATE}")
        return record[key]

    def odd(self, what: str) -> EdgemtError:
        version = self.models[0].get("ds_version")
        return EdgemtError(
            f"{self.folder}, of DeepSpeed {version}, does not add up ({what}): it is damaged, or laid out "
            f"otherwise than that of 0.19; {CONSOLIDATE}"
        )


@dataclass(frozen=True)
class Flat:
    """Tensors as one long row of numbers."""

    parts: Sequence[torch.Tensor]

    @property
    def size(self) -> int:
        return sum(part.numel() for part in self.parts)

    def cut(self, start: int, stop: int) -> list[torch.Tensor]:
        """Views of the numbers from `start` to before `stop`."""
        offsets = accumulate((part.numel() for part in self.parts), initial=0)
        pieces = [
            part.reshape(-1)[max(start - offset, 0) : max(stop - offset, 0)]
            for part, offset in zip(self.parts, offsets, strict=False)
        ]
        return [piece for piece in pieces if piece.numel()]


def found(path: Path) -> bool:
    """A step's folder or a file in it, a folder that holds steps, or one whose `latest` names a step.

    Not where that step was deleted and the Trainer's own weights were kept.
    """
    if path.is_file():
        return path.name.endswith(("_optim_states.pt", "_model_states.pt")) and bool(_masters(path.parent))
    if holds_masters(path) or _is_step(path) or (path / "latest_universal").is_file():
        return True
    return (path / "latest").is_file() and not accelerate.holds_model(path)


def holds_masters(path: Path) -> bool:
    """Whether the masters of a step are there, in a folder that is one or has one."""
    return bool(_masters(path) or _steps(path) or _masters(path / tag(path / "latest")))


def read(path: Path) -> Weights:
    """The masters of all ranks, and what was not trained, as weights by name.

    Raises EdgemtError for a part that is missing or odd.
    """
    return _read(path.parent if path.is_file() else path, untrained=True)


def read_masters(path: Path) -> Weights:
    """What was trained, and nothing else (of an adapter's run: without its base). Raises as `read` does."""
    return _read(path, untrained=False)


def _read(path: Path, untrained: bool) -> Weights:
    step = _open(_folder(path))
    masters = dict(_sharded(step) if step.stage == 3 else _partitioned(step))
    tensors = {**dict(_untrained(step)), **masters} if untrained else dict(masters)
    for name, original in (step.models[0].get("shared_params") or {}).items():
        if original in tensors:
            tensors[name] = tensors[original]
    scaler, kinds = step.optimizers[0].get("loss_scaler"), {stored.dtype for stored in masters.values()}
    amp = facts(step.models[0], scaler.get("cur_scale") if isinstance(scaler, Inert) else None)
    amp["masters"] = f"{'/'.join(sorted(kinds))}, parts of {len(step.optimizers)} ranks in {step.folder.name}"
    home = path.parent if path == step.folder and (path.parent / "config.json").is_file() else path
    amp |= trainer.beside(home, masters, amp.get("steps"))
    return Weights(f"DeepSpeed ZeRO-{step.stage}", tensors, step.files, amp, home)


def _folder(path: Path) -> Path:
    """The folder of the step to be read: `path`, what its `latest` names, or the only one in it."""
    latest, steps = path / "latest", _steps(path)
    if _is_step(path):
        return path
    if not latest.is_file() and len(steps) == 1:
        return steps[0]
    if not latest.is_file() and steps:
        names = listing([step.name for step in steps])
        raise EdgemtError(f"{path} holds several steps ({names}); give the folder of one")
    latest = latest if latest.is_file() else path / "latest_universal"
    name = tag(latest)
    if not name or not (path / name).is_dir():
        raise EdgemtError(f"{latest} names {name or 'nothing'}, which is not in {path}; copy that folder too")
    return path / name


def tag(latest: Path) -> str:
    """The folder that a `latest` names; "" if there is none."""
    return Path(latest.read_text(encoding="utf-8", errors="replace").strip()).name if latest.is_file() else ""


def _is_step(folder: Path) -> bool:
    return bool(_masters(folder)) or any(folder.glob(UNIVERSAL))


def _masters(folder: Path) -> dict[int, Path]:
    """The file with each rank's masters."""
    named = ((OPTIMIZER.fullmatch(file.name), file) for file in sorted(folder.glob("*_optim_states.pt")))
    return {int(match[1]): file for match, file in named if match}


def _steps(path: Path) -> list[Path]:
    return sorted(folder for folder in path.glob("global_step*") if _masters(folder))


def _open(folder: Path) -> Step:
    """All files of a step, if they are all there and of one run."""
    for pattern, what in OTHER_LAYOUTS.items():
        if any(folder.glob(pattern)):
            raise EdgemtError(f"{folder} {what}, which edgemt does not join; {CONSOLIDATE}")
    files = _masters(folder)
    if not files:
        raise without_masters(folder)
    loaded = {rank: load_pickle(file) for rank, file in files.items()}
    for rank, record in loaded.items():
        if not isinstance(record, Mapping) or not isinstance(record.get("optimizer_state_dict"), Mapping):
            raise EdgemtError(f"{files[rank]} has no optimizer_state_dict: it is not ZeRO's; {CONSOLIDATE}")
    optimizer = next(iter(loaded.values()))["optimizer_state_dict"]
    ranks = optimizer.get("partition_count", 0)
    ranks = ranks if isinstance(ranks, int) else max(ranks)  # at stages 1 and 2 a number for each group
    one = next(iter(files.values())).name
    absent = [
        one.replace(f"rank_{min(files)}_", f"rank_{rank}_", 1) for rank in range(ranks) if rank not in files
    ]
    if absent:
        raise EdgemtError(
            f"{folder} lacks {listing(absent)}: it was trained on {ranks} ranks, and each saved a part; "
            "copy the files of all ranks"
        )
    if len(files) > ranks:
        raise EdgemtError(
            f"{folder} has the masters of {len(files)} ranks but was trained on {ranks}: two runs are mixed "
            "in it; copy the checkpoint again"
        )
    stage = optimizer.get("zero_stage", 1)  # BF16_Optimizer, which is for stage 1 alone, does not say
    stage = int(stage.arguments[0]) if isinstance(stage, Inert) else int(stage)
    prefixes = [f"zero_pp_rank_{rank}_" for rank in range(ranks)] if stage == 3 else [""]
    models = [folder / f"{prefix}mp_rank_00_model_states.pt" for prefix in prefixes]
    missing = [file.name for file in models if not file.is_file()]
    if missing:
        raise EdgemtError(
            f"{folder} lacks {listing(missing)}, which name the weights; copy the files of all ranks"
        )
    return Step(
        folder,
        stage,
        [loaded[rank]["optimizer_state_dict"] for rank in range(ranks)],
        [load_pickle(file) for file in models],
        (*models, *(files[rank] for rank in range(ranks))),
    )


def without_masters(folder: Path) -> EdgemtError:
    return EdgemtError(f"{folder} has no *_optim_states.pt, which hold the masters; copy those of all ranks")


def _partitioned(step: Step) -> Iterator[tuple[str, Stored]]:
    """Stages 1 and 2: a group is the ranks' parts in a row, and its parameters follow one another in it."""
    groups = [step.need(optimizer, "single_partition_of_fp32_groups") for optimizer in step.optimizers]
    shapes: list[Mapping[str, Sequence[int]]] = step.need(step.models[0], "param_shapes")
    aligned = step.optimizers[0].get("param_alignment_paddings") or [[0] * len(group) for group in shapes]
    if {len(parts) for parts in (*groups, aligned)} != {len(shapes)}:
        raise step.odd(f"{len(shapes)} groups of parameters are named and {len(groups[0])} saved")
    for i, group in enumerate(shapes):
        flat, start = Flat([parts[i] for parts in groups]), 0
        for (name, shape), padding in zip(group.items(), aligned[i], strict=True):
            stop = start + math.prod(shape)
            if stop > flat.size:
                raise step.odd(f"group {i} ends within {name}")
            yield name, joined(flat.cut(start, stop), shape, _source(step, flat.parts[0]))
            start = stop + padding
        padded = sum(optimizer.get("group_paddings", [0] * len(shapes))[i] for optimizer in step.optimizers)
        if flat.size - start not in (0, padded):
            raise step.odd(f"group {i} has {flat.size} numbers where its parameters take {start}")


def _sharded(step: Step) -> Iterator[tuple[str, Stored]]:
    """Stage 3: each rank's groups in a row are its parts of all parameters, one after the other."""
    ranks = [Flat(step.need(optimizer, "fp32_flat_groups")) for optimizer in step.optimizers]
    start = 0
    for group in step.need(step.models[0], "param_shapes"):
        for name, shape in group.items():
            stop = start - (-math.prod(shape) // len(ranks))
            if any(stop > rank.size for rank in ranks):
                raise step.odd(f"a rank's masters end within {name}")
            pieces = [piece for rank in ranks for piece in rank.cut(start, stop)]
            yield name, joined(Flat(pieces).cut(0, math.prod(shape)), shape, _source(step, pieces[0]))
            start = stop
    if {rank.size for rank in ranks} != {start}:
        raise step.odd(
            f"a rank has {max(rank.size for rank in ranks)} numbers where its parameters take {start}"
        )


def _source(step: Step, tensor: torch.Tensor) -> str:
    kind = "FP32" if tensor.dtype == torch.float32 else str(tensor.dtype).removeprefix("torch.")
    return f"{kind} masters in {step.folder.name}/*_optim_states.pt"


def _untrained(step: Step) -> Iterator[tuple[str, Stored]]:
    """Buffers and parameters that were not trained: as the model had them, so in half precision if it was.

    Also, at stages 1 and 2, the rounded copies of the trained ones, which their masters then replace.
    """
    where = f"{step.folder.name}/{step.files[0].name} (not trained: no master)"
    for name, tensor in step.need(step.models[0], "module").items():
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            yield name, of_tensor(tensor, where)
    fragments = [model.get("frozen_param_fragments") or {} for model in step.models]
    for name, shape in (step.models[0].get("frozen_param_shapes") or {}).items():
        flat = Flat([fragment[name] for fragment in fragments if name in fragment])
        if len(flat.parts) != len(step.models) or flat.size < math.prod(shape):
            raise step.odd(f"the frozen {name} is not whole")
        yield name, joined(flat.cut(0, math.prod(shape)), shape, where)


def facts(model: Mapping[str, Any], scale: float | None) -> dict[str, Any]:
    """What a file of model states, and the loss scale of its optimizer, tell of the training."""
    config = model.get("ds_config")
    config = config if isinstance(config, Mapping) else {}
    on = [name for name in ("fp16", "bf16") if (config.get(name) or {}).get("enabled")]
    found = {
        "precision": {"fp16": "fp16-o2", "bf16": "bf16"}[on[0]] if on else "fp32",
        "steps": model.get("global_steps"),
        "skipped_steps": model.get("skipped_steps"),
        "loss_scale": scale if "fp16" in on else None,
        "written_by": f"DeepSpeed {model.get('ds_version', 'of an unknown version')}",
    }
    return {key: value for key, value in found.items() if value is not None}
