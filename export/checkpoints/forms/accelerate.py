"""What Accelerate's `save_state` leaves: a model's weights, and beside them the states of its training.

    model.safetensors (or its shards, or pytorch_model.bin) or pytorch_model_fsdp.bin; optimizer.bin,
    scheduler.bin, scaler.pt (FP16 only), random_states_0.pkl (never read); of more models model_1.safetensors

It trains in FP16 and BF16 by autocast, with FSDP too, so the model's own weights are the FP32 masters. Shards
of FSDP (`pytorch_model_fsdp_0/`) only its own command joins. The configuration is not among the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.facts import listing
from edgemt.export.checkpoints.forms import transformers
from edgemt.export.checkpoints.pickles import load_pickle
from edgemt.export.checkpoints.tensors import Stored, Weights

FSDP = "pytorch_model_fsdp"
HALVES = {"float16": "fp16-pure", "bfloat16": "bf16-pure"}


def found(path: Path) -> bool:
    """A folder with the optimizer's or the random state as Accelerate names them."""
    return path.is_dir() and any((*path.glob("random_states_*.pkl"), *path.glob("optimizer.bin")))


def read(path: Path) -> Weights:
    """The first model of the folder. Raises EdgemtError if only shards of FSDP are there, or no weights."""
    weights = model_in(path)
    if weights is None:
        raise EdgemtError(f"{path} has a state of Accelerate's but no weights; copy the whole folder")
    others = sorted(
        file.name for file in path.glob("model_[0-9]*") if file.suffix in (".safetensors", ".bin")
    )
    facts = {
        "written_by": "Accelerate",
        "steps": _steps(path / "optimizer.bin"),
        "left_aside": f"{listing(others)}: other models of the same run" if others else None,
    }
    facts = {key: value for key, value in facts.items() if value is not None}
    amp = {**precision(weights.tensors, path / "scaler.pt"), **facts}
    return Weights("Accelerate save_state", weights.tensors, weights.files, amp, path)


def holds_model(path: Path) -> bool:
    """Whether weights lie in `path` that `model_in` finds."""
    return transformers.any_found(path) or (path / f"{FSDP}.bin").is_file()


def model_in(path: Path) -> Weights | None:
    """The weights of a folder in a plain file, in shards of one, or gathered by FSDP."""
    if transformers.any_found(path):
        return transformers.read_any(path)
    gathered = path / f"{FSDP}.bin"
    if gathered.is_file():
        return Weights("FSDP", dict(transformers.pickled(gathered)), (gathered,), {}, path)
    if (path / f"{FSDP}_0").is_dir():
        raise EdgemtError(
            f"{path} holds its weights in shards of FSDP ({FSDP}_0); join them with "
            f"`accelerate merge-weights {FSDP}_0 .` in it, and give it again"
        )
    return None


def precision(tensors: Mapping[str, Stored], scaler: Path) -> dict[str, Any]:
    """How a run of autocast was trained, as far as the types of its weights and its scaler's state tell.

    BF16 autocast leaves nothing that FP32 training does not, so that those two are not told apart.
    """
    kinds = {stored.dtype for stored in tensors.values() if len(stored.shape) > 1}
    halves = sorted(kinds & HALVES.keys())
    state = load_pickle(scaler) if scaler.is_file() else {}
    scale = state.get("scale") if isinstance(state, Mapping) else None
    facts: dict[str, Any] = {"masters": "FP32: autocast keeps the model itself in FP32"}
    if halves:
        facts = {
            "precision": HALVES[halves[0]],
            "masters": f"none: the model itself was trained in {halves[0]}",
        }
    elif scale is not None:
        facts["precision"] = "fp16-o1"
    return facts if scale is None else {**facts, "loss_scale": float(scale)}


def _steps(optimizer: Path) -> int | None:
    """Steps that the optimizer took (skipped ones do not count), if it says."""
    try:
        state = load_pickle(optimizer)["state"].values()
        return max(int(entry["step"]) for entry in state)
    except (EdgemtError, LookupError, TypeError, ValueError, AttributeError):
        return None  # another optimizer's state: the weights do not depend on it
