"""What `edgemt train` leaves: the checkpoint it writes, and the folder of a run (its last state)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.facts import read_json
from edgemt.export.checkpoints.forms import transformers
from edgemt.export.checkpoints.pickles import load_pickle
from edgemt.export.checkpoints.tensors import Weights, of_tensor

RECORD = "edgemt.json"
STATE = "state.pt"
MODEL = "model"  # the folder beside the state: configuration and tokenizer


def found_checkpoint(path: Path) -> bool:
    return (path / RECORD).is_file() and transformers.any_found(path)


def read_checkpoint(path: Path) -> Weights:
    """A Hugging Face folder with the record of its training."""
    weights = transformers.read_any(path)
    record = read_json(path / RECORD)
    facts = {"written_by": "edgemt train", **_masters(record.get("precision")), **record}
    return Weights(f"edgemt train, {weights.form}", weights.tensors, weights.files, facts, path)


def found_run(path: Path) -> bool:
    return (path / STATE).is_file()


def read_run(path: Path) -> Weights:
    """The averaged FP32 weights in the last state of a run."""
    state = load_pickle(path / STATE)
    if not isinstance(state, Mapping) or not isinstance(state.get("average"), Mapping):
        raise EdgemtError(
            f"{path / STATE} is not the state of an edgemt train run; give the file of the model"
        )
    if not (path / MODEL / "config.json").is_file():
        raise EdgemtError(
            f"{path} is a run of edgemt train without its folder {MODEL}; write its checkpoint with "
            "edgemt train --export-checkpoint --out DIR, and give that"
        )
    model, average = state.get("model", {}), state["average"]
    averaged = {
        model[name].data_ptr() for name in average if name in model
    }  # under all names that share them
    rest = {name: tensor for name, tensor in model.items() if tensor.data_ptr() not in averaged}
    tensors = {name: of_tensor(tensor, f"{STATE} (model)") for name, tensor in rest.items()}
    tensors |= {name: of_tensor(tensor, f"{STATE} (FP32 average)") for name, tensor in average.items()}
    return Weights("edgemt train, run", tensors, (path / STATE,), _facts(state), path / MODEL)


def _facts(state: Mapping[str, Any]) -> dict[str, Any]:
    stepper, progress = state.get("stepper", {}), state.get("progress", {})
    precision = state.get("config", {}).get("precision")
    facts = {
        "written_by": "edgemt train",
        "precision": precision,
        "steps": progress.get("step"),
        "skipped_steps": stepper.get("skipped"),
        "loss_scale": (stepper.get("scaler") or {}).get("scale"),
        **_masters(precision),
        "target_tokens": progress.get("tokens"),
        "dev_scores": progress.get("scores"),
        **progress.get("base", {}),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _masters(precision: Any) -> dict[str, str]:
    if precision == "fp16-pure":
        return {"masters": "none: trained in pure FP16, averaged in FP32"}
    return {"masters": "the model's own FP32 weights, averaged over steps"} if precision else {}
