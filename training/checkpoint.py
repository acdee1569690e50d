"""The checkpoint directory: a plain Hugging Face model, and `edgemt.json` with how it was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.facts import UNKNOWN
from edgemt.export.checkpoints.read import open_checkpoint
from edgemt.training.families import Family
from edgemt.training.files import replacing

RECORD = "edgemt.json"


def write_checkpoint(directory: Path, family: Family, record: dict[str, Any]) -> None:
    """Write FP32 weights, configuration, tokenizer and record; an old directory is replaced by a rename."""
    weights = family.weights()
    with replacing(directory, sum(tensor.nbytes for tensor in weights.values())) as temporary:
        temporary.mkdir()
        family.write_files(temporary)
        if weights:  # there are none beside adapters alone
            save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
            (temporary / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def base_of(init: Path | None) -> dict[str, Any]:
    """For the record: the name of the checkpoint that a run starts from, and its licence, which binds what is
    made of it; {} if it starts from none."""
    if init is None or not (init.is_file() or any(init.glob("*.json"))):
        return {}
    try:
        checkpoint = open_checkpoint(init)
    except EdgemtError:  # something else that a family starts from, such as an embedding
        return {}
    licence = {} if checkpoint.licence.startswith(UNKNOWN) else {"licence": checkpoint.licence}
    return {"base": checkpoint.name, **licence}


def copy_checkpoint(source: Path, target: Path) -> int:
    """Copy a whole checkpoint directory; returns the step it is of."""
    size = sum(file.stat().st_size for file in source.rglob("*"))
    with replacing(target, size) as temporary:
        shutil.copytree(source, temporary)
    return int(json.loads((target / RECORD).read_text(encoding="utf-8"))["steps"])
