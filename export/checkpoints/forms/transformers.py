"""What `save_pretrained` writes: safetensors or a torch pickle, in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.facts import first_line, read_json
from edgemt.export.checkpoints.pickles import load_pickle
from edgemt.export.checkpoints.tensors import Stored, Weights, of_file, of_tensor

MARKERS = {
    "safetensors": "model.safetensors",
    "sharded safetensors": "model.safetensors.index.json",
    "torch pickle": "pytorch_model.bin",
    "sharded torch pickle": "pytorch_model.bin.index.json",
}
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


def found(name: str) -> Callable[[Path], bool]:
    return lambda path: marker(path, name).is_file()


def read(name: str) -> Callable[[Path], Weights]:
    """The reader of the form `name`: all files that its marker names."""

    def weights(path: Path) -> Weights:
        files = shards(marker(path, name))
        tensors = {key: stored for file in files for key, stored in tensors_of(file)}
        return Weights(name, tensors, tuple(files), {}, files[0].parent)

    return weights


def marker(path: Path, name: str) -> Path:
    """The file that the form `name` has in the folder `path`, or `path` itself if it is such a file."""
    itself = path.name == MARKERS[name] or (name == "safetensors" and path.suffix == ".safetensors")
    return path if itself else path / MARKERS[name]


def any_found(path: Path) -> bool:
    return any(found(name)(path) for name in MARKERS)


def read_any(path: Path) -> Weights:
    """The weights of whichever of these forms is there."""
    return next(read(name)(path) for name in MARKERS if found(name)(path))


def shards(file: Path) -> list[Path]:
    """`file` itself, or the files that it names if it is an index. Raises EdgemtError if one is missing."""
    if file.suffix != ".json":
        return [file]
    index = read_json(file).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise EdgemtError(f"{file} has no weight_map; copy the checkpoint again")
    files = [file.parent / Path(name).name for name in sorted(set(index.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise EdgemtError(
            f"{file.parent} lacks {', '.join(missing)}, which {file.name} names; copy the whole checkpoint"
        )
    return files


def tensors_of(file: Path) -> Iterator[tuple[str, Stored]]:
    """Names and weights of one file."""
    return safetensors(file) if file.suffix == ".safetensors" else pickled(file)


def safetensors(file: Path) -> Iterator[tuple[str, Stored]]:
    """Names and weights of a safetensors file. Raises EdgemtError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy"):  # checks the header against the size of the file
            pass
    except (SafetensorError, OSError) as error:
        raise EdgemtError(f"{file} is truncated or damaged ({first_line(error)}); copy it again") from None
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    for name, facts in header.items():
        if facts["dtype"] not in DTYPES:
            raise EdgemtError(
                f"{file} stores {name} as {facts['dtype']}, which edgemt does not read; cast it"
            )
        start = 8 + length + facts["data_offsets"][0]
        yield name, of_file(file, start, facts["shape"], DTYPES[facts["dtype"]], file.name)


def pickled(file: Path) -> Iterator[tuple[str, Stored]]:
    """Names and weights of a state dict that torch pickled."""
    loaded = load_pickle(file)
    if not is_state_dict(loaded):
        raise EdgemtError(f"{file} is not a state dict (names to tensors); save model.state_dict() instead")
    for name, tensor in loaded.items():
        yield name, of_tensor(tensor, file.name)


def is_state_dict(loaded: object) -> bool:
    return isinstance(loaded, Mapping) and all(isinstance(value, torch.Tensor) for value in loaded.values())
