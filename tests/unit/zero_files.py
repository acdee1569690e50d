"""ZeRO checkpoints without DeepSpeed: the fixtures that it wrote, and its layout for any shapes and ranks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import marian
import torch

FIXTURES = Path(__file__).parents[1] / "data" / "checkpoints"
Groups = Sequence[Mapping[str, torch.Tensor]]


def copy(case: str, to: Path) -> Path:
    """A copy of a fixture with the tokenizer of a Marian model of its size and rows to check it with."""
    folder = Path(shutil.copytree(FIXTURES / case, to / Path(case).name))
    tokenizer(folder)
    return folder


def tokenizer(folder: Path) -> None:
    """For the fixtures' 93 pieces."""
    model, known = marian.pieces("en", 90)
    vocab = ["</s>", "<unk>", "<pad>", ">>zh<<", ">>en<<", *known[2:]]
    for side in ("source", "target"):
        (folder / f"{side}.spm").write_bytes(model)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocab)}))
    (folder / "tokenizer_config.json").write_text("{}")
    marian.write_rows(folder)


def masters(folder: Path) -> dict[str, str]:
    """Digests of the masters by name, as the optimizer of DeepSpeed had them."""
    return json.loads((folder / "masters.json").read_text())


def digest(values: Any) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def write(
    folder: Path, groups: Groups, stage: int, ranks: int, sub_group: int = 10**9, **changes: Any
) -> None:
    """A step in `folder` as DeepSpeed lays it out; `changes` are to what each rank's optimizer says."""
    folder.mkdir(parents=True)
    half = {name: tensor.bfloat16() for group in groups for name, tensor in group.items()}
    model = {
        "module": half if stage < 3 else {name: torch.zeros(0, dtype=torch.bfloat16) for name in half},
        "param_shapes": [{name: tensor.shape for name, tensor in group.items()} for group in groups],
        "ds_config": {"bf16": {"enabled": True}},
        "global_steps": 7,
        "skipped_steps": 0,
    }
    for rank, state in enumerate(_sharded(groups, ranks, sub_group) if stage == 3 else _cut(groups, ranks)):
        optimizer = {"zero_stage": stage, "partition_count": ranks, **state, **changes}
        saved = {"optimizer_state_dict": optimizer}
        torch.save(saved, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3:
            torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    if stage < 3:
        torch.save(model, folder / "mp_rank_00_model_states.pt")


def _cut(groups: Groups, ranks: int) -> Iterator[dict[str, Any]]:
    """Stages 1 and 2: flat, padded to twice the ranks, cut; the padding is taken off again."""
    flats = [torch.cat([tensor.flatten() for tensor in group.values()]) for group in groups]
    parts = [-(-flat.numel() // (2 * ranks)) * 2 for flat in flats]
    for rank in range(ranks):
        cut = [flat[rank * part : (rank + 1) * part].clone() for flat, part in zip(flats, parts, strict=True)]
        padded = [part - piece.numel() for part, piece in zip(parts, cut, strict=True)]
        yield {"single_partition_of_fp32_groups": cut, "group_paddings": padded}


def _sharded(groups: Groups, ranks: int, sub_group: int) -> Iterator[dict[str, Any]]:
    """Stage 3: each tensor padded and cut by itself; the parts are in groups of about `sub_group` numbers."""
    tensors = [tensor.flatten() for group in groups for tensor in group.values()]
    for rank in range(ranks):
        flats: list[list[torch.Tensor]] = [[]]
        for tensor in tensors:
            part = -(-tensor.numel() // ranks)
            piece = torch.nn.functional.pad(tensor, (0, part * ranks - tensor.numel()))
            if sum(one.numel() for one in flats[-1]) >= sub_group:
                flats.append([])
            flats[-1].append(piece[rank * part : (rank + 1) * part])
        yield {"fp32_flat_groups": [torch.cat(flat) for flat in flats]}
