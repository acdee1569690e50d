"""Reading a checkpoint directory: its configuration, its FP32 weights, its tokenizer files, its origin.

A *form* is one way in which weights lie in a directory. A form that a trainer writes (Apex, Accelerate,
DeepSpeed …) is one more entry of `FORMS`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemt.errors import EdgemtError
from edgemt.export.graphs import ARCHITECTURES

Tensors = dict[str, NDArray[np.float32]]

SPECIAL = re.compile(r">>.+<<|<pad>|<unk>|<s>")
TOKENIZER_FILES = {"source": "source.spm", "target": "target.spm", "vocab": "vocab.json"}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: `tensors` are FP32 and finite, whatever type they were stored in (`dtypes`)."""

    directory: Path
    architecture: str
    form: str
    config: dict[str, Any]
    generation: dict[str, Any]
    tensors: Tensors
    dtypes: tuple[str, ...]
    vocab: dict[str, int]
    amp: dict[str, Any]  # edgemt.json: how it was trained; empty if it does not say
    sha256: str  # of the weight files, in order
    licence: str

    @property
    def name(self) -> str:
        return self.directory.resolve().name

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
    config = _json(config_file)
    architecture = str((config.get("architectures") or ["?"])[0])
    if architecture not in ARCHITECTURES:
        raise EdgemtError(
            f"{config_file} names the architecture {architecture}, which has no canonical graphs yet; "
            f"edgemt exports {', '.join(ARCHITECTURES)} (any OPUS-MT model)"
        )
    form = next((form for form in FORMS if (directory / form.marker).is_file()), None)
    if form is None:
        markers = ", ".join(form.marker for form in FORMS)
        raise EdgemtError(
            f"{directory} has no weights: none of {markers} is there; copy the whole checkpoint"
        )
    files = form.files(directory)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise EdgemtError(
            f"{directory} lacks {', '.join(missing)}, which {form.marker} names; copy the whole checkpoint"
        )
    tensors, dtypes = _float32(form.load(file) for file in files)
    _check_finite(tensors, directory)
    generation_file, amp_file = directory / "generation_config.json", directory / "edgemt.json"
    generation = _json(generation_file) if generation_file.is_file() else {}
    for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id", "bad_words_ids"):
        if config.get(key) is None and generation.get(key) is not None:
            config[key] = generation[key]
        generation.setdefault(key, config.get(key))
    amp = _json(amp_file) if amp_file.is_file() else {}
    return Checkpoint(
        directory=directory,
        architecture=architecture,
        form=form.name,
        config=config,
        generation=generation,
        tensors=tensors,
        dtypes=dtypes,
        vocab=_vocabulary(directory),
        amp=amp,
        sha256=sha256(files),
        licence=_licence(directory, config, amp),
    )


def check_shapes(
    tensors: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[int, ...]], where: Path
) -> None:
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


def sha256(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of the files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def listing(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# Forms of weights


def _load_safetensors(file: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise EdgemtError(f"{file} is truncated or damaged ({error}); copy it again") from None


def _load_pickle(file: Path) -> Mapping[str, Any]:
    """Tensors of a torch pickle, without running any code that it may carry."""
    import torch

    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|Unsupported (?:class|global|operand)\W+)\s*([\w.]+)", str(error))
        culprit = named.group(1) if named else "an unknown object"
        raise EdgemtError(
            f"{file} was refused, because it holds more than tensors ({culprit}) and could run code; "
            "write its state dict again with safetensors.torch.save_file where you trust it"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise EdgemtError(f"{file} is truncated or damaged ({_first_line(error)}); copy it again") from None
    if not isinstance(loaded, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in loaded.values()
    ):
        raise EdgemtError(f"{file} is not a state dict (names to tensors); save model.state_dict() instead")
    return loaded


def _one(marker: str) -> Callable[[Path], list[Path]]:
    return lambda directory: [directory / marker]


def _shards(marker: str) -> Callable[[Path], list[Path]]:
    def files(directory: Path) -> list[Path]:
        index = _json(directory / marker).get("weight_map")
        if not isinstance(index, dict):
            raise EdgemtError(f"{directory / marker} has no weight_map; copy the checkpoint again")
        return [directory / Path(name).name for name in sorted(set(index.values()))]

    return files


class Form(NamedTuple):
    """One way in which weights lie: found by `marker`, spread over `files`, each read by `load`."""

    name: str
    marker: str
    files: Callable[[Path], list[Path]]
    load: Callable[[Path], Mapping[str, Any]]


FORMS = tuple(
    Form(name, marker, files(marker), load)
    for name, marker, files, load in (
        ("safetensors", "model.safetensors", _one, _load_safetensors),
        ("sharded safetensors", "model.safetensors.index.json", _shards, _load_safetensors),
        ("torch pickle", "pytorch_model.bin", _one, _load_pickle),
        ("sharded torch pickle", "pytorch_model.bin.index.json", _shards, _load_pickle),
    )
)


def _float32(shards: Iterable[Mapping[str, Any]]) -> tuple[Tensors, tuple[str, ...]]:
    tensors: Tensors = {}
    dtypes: set[str] = set()
    for shard in shards:
        for name, tensor in shard.items():
            dtypes.add(str(tensor.dtype).removeprefix("torch."))
            tensors[name] = tensor.detach().float().numpy()
    return tensors, tuple(sorted(dtypes))


def _check_finite(tensors: Tensors, where: Path) -> None:
    bad = [name for name, tensor in sorted(tensors.items()) if not np.isfinite(tensor).all()]
    if bad:
        raise EdgemtError(
            f"the checkpoint {where} has NaN or infinite weights in {listing(bad)}; "
            "the training diverged, so export an earlier checkpoint"
        )


# The files beside the weights


def _vocabulary(directory: Path) -> dict[str, int]:
    missing = [name for name in TOKENIZER_FILES.values() if not (directory / name).is_file()]
    if missing:
        raise EdgemtError(f"{directory} lacks {', '.join(missing)}; copy the tokenizer files of its training")
    return {str(piece): int(i) for piece, i in _json(directory / "vocab.json").items()}


def _licence(directory: Path, config: Mapping[str, Any], amp: Mapping[str, Any]) -> str:
    """From edgemt.json, config.json, or the front matter of the model card."""
    for source in (amp, config):
        for key in ("licence", "license"):
            if source.get(key):
                return str(source[key])
    card = directory / "README.md"
    if card.is_file():
        head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        named = re.search(r"^licen[sc]e:\s*(\S.*)$", head.group(1), re.MULTILINE) if head else None
        if named:
            return named.group(1).strip()
    return "unknown: the checkpoint names none"


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise EdgemtError(
            f"{file} cannot be read ({_first_line(error)}); copy the checkpoint again"
        ) from None
    if not isinstance(data, dict):
        raise EdgemtError(f"{file} is not a JSON object; copy the checkpoint again")
    return data


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
