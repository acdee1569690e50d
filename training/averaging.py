"""`edgemt train average CHECKPOINT… --out DIR`: the plain mean of several checkpoints of one model."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from edgemt.errors import UsageError

# Of a checkpoint, what goes with the mean of its weights; other files say how those weights were trained.
FILES = (
    "config.json",
    "generation_config.json",
    "*.spm",
    "vocab.json",
    "merges.txt",
    "tokenizer*",
    "*.jinja",
)
FILES += ("special_tokens_map.json", "added_tokens.json", "calibration.tsv", "heldout.tsv")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="of any form, all of one model"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the mean is written")


def run(args: argparse.Namespace) -> int:
    average(args.checkpoints, args.out)
    print(f"wrote {args.out}, the mean of {len(args.checkpoints)} checkpoints")
    return 0


def average(paths: list[Path], out: Path) -> None:
    """Write a checkpoint with the mean of each weight over `paths`, taken in FP64 and written in FP32.

    Files beside the weights are those of the first. Raises UsageError if they are not of one model.
    """
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from edgemt.export.checkpoints.read import read_checkpoint
    from edgemt.training.checkpoint import RECORD
    from edgemt.training.files import replacing

    if len(paths) < 2:
        raise UsageError("an average needs two checkpoints or more: name them all before --out")
    checkpoints = [read_checkpoint(path) for path in paths]
    first = checkpoints[0]
    shapes = {name: stored.shape for name, stored in first.stored.items()}
    for other in checkpoints[1:]:
        theirs = {name: stored.shape for name, stored in other.stored.items()}
        different = sorted(dict(shapes.items() ^ theirs.items()))
        if different:
            raise UsageError(
                f"{other.path} is not of the same model as {first.path}: they differ in {different[0]}"
            )
    mean = {}
    for name, shape in shapes.items():
        total = np.zeros(shape, np.float64)
        for checkpoint in checkpoints:
            total += checkpoint.tensors[name]
        mean[name] = torch.from_numpy((total / len(checkpoints)).astype(np.float32))
    record = {
        "averaged": [{"name": c.name, "steps": c.amp.get("steps")} for c in checkpoints],
        **{key: first.amp[key] for key in ("precision", "config", "licence") if key in first.amp},
    }
    with replacing(out, sum(tensor.nbytes for tensor in mean.values())) as temporary:
        temporary.mkdir()
        for pattern in FILES:
            for file in first.directory.glob(pattern):
                shutil.copyfile(file, temporary / file.name)
        save_file(mean, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
