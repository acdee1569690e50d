"""Reading a checkpoint: its configuration, its FP32 weights, its tokenizer files, its origin."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.facts import licence, listing, read_json, vocabulary
from edgemt.export.checkpoints.forms import FORMS
from edgemt.export.checkpoints.forms.transformers import MARKERS
from edgemt.export.checkpoints.tensors import Loaded, Stored, Weights
from edgemt.export.graphs import ARCHITECTURES

SPECIAL = re.compile(r">>.+<<|<pad>|<unk>|<s>")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: its weights are finite, and FP32 once loaded, however they are stored."""

    directory: Path
    architecture: str
    config: dict[str, Any]
    generation: dict[str, Any]
    weights: Weights
    vocab: dict[str, int]
    amp: dict[str, Any]  # how it was trained; empty if it does not say
    licence: str

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def form(self) -> str:
        return self.weights.form

    @property
    def tensors(self) -> Mapping[str, NDArray[np.float32]]:
        """The weights as FP32 arrays, each read when it is asked for."""
        return Loaded(self.weights.tensors)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types that the weights are stored in."""
        return tuple(sorted({stored.dtype for stored in self.weights.tensors.values()}))

    @cached_property
    def sha256(self) -> str:
        """Of the weight files, in order."""
        return sha256(self.weights.files)

    def special_ids(self) -> list[int]:
        """Ids that are never an answer: padding, unknown, language tokens, what the checkpoint forbids."""
        banned = [ids[0] for ids in self.generation.get("bad_words_ids") or [] if len(ids) == 1]
        ids = [i for piece, i in self.vocab.items() if SPECIAL.fullmatch(piece)]
        return sorted({*ids, *banned, int(self.config["pad_token_id"])} - {int(self.config["eos_token_id"])})


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read and check `directory`. Raises EdgemtError in one sentence for whatever is wrong with it."""
    if not directory.exists():
        raise EdgemtError(f"no such checkpoint: {directory}; give the directory of a trained model")
    if not directory.is_dir():
        raise EdgemtError(f"{directory} is a file; give the directory of a trained model (with config.json)")
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise EdgemtError(
            f"{directory} is not a checkpoint: it has no config.json; give a Hugging Face model"
        )
    config = read_json(config_file)
    architecture = str((config.get("architectures") or ["?"])[0])
    if architecture not in ARCHITECTURES:
        raise EdgemtError(
            f"{config_file} names the architecture {architecture}, which has no canonical graphs yet; "
            f"edgemt exports {', '.join(ARCHITECTURES)} (any OPUS-MT model)"
        )
    weights = read_weights(directory)
    check_finite(weights.tensors, directory)
    generation_file, amp_file = directory / "generation_config.json", directory / "edgemt.json"
    generation = read_json(generation_file) if generation_file.is_file() else {}
    for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id", "bad_words_ids"):
        if config.get(key) is None and generation.get(key) is not None:
            config[key] = generation[key]
        generation.setdefault(key, config.get(key))
    amp = read_json(amp_file) if amp_file.is_file() else {}
    return Checkpoint(
        directory=directory,
        architecture=architecture,
        config=config,
        generation=generation,
        weights=weights,
        vocab=vocabulary(directory),
        amp={**weights.amp, **amp},
        licence=licence(directory, config, amp),
    )


def read_weights(path: Path) -> Weights:
    """The weights of a checkpoint in any form, not loaded yet. Raises EdgemtError if no form fits."""
    form = next((form for form in FORMS if form.found(path)), None)
    if form is None:
        markers = ", ".join(MARKERS.values())
        raise EdgemtError(f"{path} has no weights: none of {markers} is there; copy the whole checkpoint")
    return form.read(path)


def check_shapes(tensors: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Compare with what the architecture needs; name all tensors missing, unexpected or mis-shaped."""
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{name} is {list(tensors[name].shape)} and should be {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = [
        f"{title}: {listing(names)}"
        for title, names in (("missing", missing), ("unexpected", extra), ("mis-shaped", shapes))
        if names
    ]
    if problems:
        raise EdgemtError(
            f"the tensors in {where} do not fit its config.json ({'; '.join(problems)}); "
            "give the config.json and the weights of the same model"
        )


def check_finite(tensors: Mapping[str, Stored], where: Path) -> None:
    bad = [
        name
        for name, stored in sorted(tensors.items())
        if not all(np.isfinite(piece).all() for piece in stored.pieces())
    ]
    if bad:
        raise EdgemtError(
            f"the checkpoint {where} has NaN or infinite weights in {listing(bad)}; "
            "the training diverged, so export an earlier checkpoint"
        )


def sha256(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of the files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
