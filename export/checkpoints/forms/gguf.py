"""GGUF, llama.cpp's single file: weights (often quantised), configuration and tokenizer in one.

The layout is read by the package gguf. Its names and its own way of turning queries and keys (Llama's halves
are interleaved there) are undone; what was quantised is dequantised and told as its source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.facts import first_line
from edgemt.export.checkpoints.gguf_header import check_header
from edgemt.export.checkpoints.model import model_of
from edgemt.export.checkpoints.tensors import PIECE, Array, Stored, Weights

MAGIC = b"GGUF"
# GGUF's name of an architecture -> transformers' class and model type.
ARCHITECTURES = {
    "hunyuan-dense": ("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense"),
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
INTERLEAVED = {"llama"}
# config.json's key -> the metadata's, behind the architecture's name.
CONFIG = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_hidden_layers": "block_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
HEAD = "attention.key_length"  # may be left out
REAL = ("epsilon", "freq_base")  # of these; all others are whole
TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
COMPUTED = {"rope_freqs.weight"}  # from the configuration
PLAIN = {"F32": np.float32, "F16": np.float16}
LARGEST = 1 << 31  # no number of a configuration reaches it
LINE = 200  # characters
UNSCALED = ("none", "")  # what rope.scaling.type says where positions are as they are


def found(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) == MAGIC


def read(path: Path) -> Weights:
    """The weights and the configuration in the file. Raises EdgemtError if it is damaged or foreign."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise EdgemtError(f"{path} is GGUF, which needs the package gguf; run: pip install gguf") from None
    check_header(path)
    try:
        reader = GGUFReader(path)
        known = {
            name: field.contents()
            for name, field in reader.fields.items()
            if "tokenizer" not in name or name.endswith("_token_id")
        }
        end = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors), default=0)
    except Exception as error:  # a damaged header raises whatever its bytes run into
        raise EdgemtError(f"{path} is truncated or damaged ({first_line(error)}); copy it again") from None
    if end > path.stat().st_size:
        raise EdgemtError(f"{path} ends before its weights do; copy it again")
    kind = line(known.get("general.architecture"))
    if kind not in ARCHITECTURES:
        raise EdgemtError(
            f"{path} holds the architecture {kind}, and edgemt reads {', '.join(ARCHITECTURES)} from GGUF; "
            "give the checkpoint that it was made from"
        )
    config = configuration(path, kind, known, {tensor.name: tensor for tensor in reader.tensors})
    if unread := sorted({tensor.tensor_type.name for tensor in reader.tensors if not is_read(tensor)}):
        raise EdgemtError(f"{path} has weights of the type {', '.join(unread)}, which edgemt does not read")
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)
    facts = {
        "written_by": "GGUF",
        "quantisation": ", ".join(f"{name} ({count})" for name, count in types.most_common()),
    }
    tensors = dict(_tensors(path, kind, config, reader.tensors))
    return Weights("GGUF", tensors, (path,), facts, path.parent, config)


def configuration(
    path: Path, kind: str, known: Mapping[str, Any], tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """What config.json would say."""
    missing = [f"{kind}.{key}" for key in CONFIG.values() if f"{kind}.{key}" not in known]
    if missing:
        raise EdgemtError(f"{path} lacks {', '.join(missing)}; convert the checkpoint again")
    for name in (f"{kind}.{key}" for key in (*CONFIG.values(), HEAD)):
        value = known.get(name, 2)
        if not isinstance(value, float if name.endswith(REAL) else int) or not 0 < value < LARGEST:
            raise EdgemtError(f"{path} says {name} = {value}, which cannot be; copy it again")
    if known[f"{kind}.block_count"] > len(tensors) or "token_embd.weight" not in tensors:
        raise EdgemtError(f"{path} lacks weights of the {kind} that it says it is; copy it again")
    scaling = str(known.get(f"{kind}.rope.scaling.type", "none"))
    if scaling not in UNSCALED:
        raise EdgemtError(f"{path} scales positions by {scaling!r}, which edgemt does not read from GGUF")
    architecture, model_type = ARCHITECTURES[kind]
    config: dict[str, Any] = {key: known[f"{kind}.{name}"] for key, name in CONFIG.items()}
    head_dim = known.get(f"{kind}.{HEAD}")
    config |= {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": int(tensors["token_embd.weight"].shape[-1]),
        "head_dim": int(head_dim or config["hidden_size"] // config["num_attention_heads"]),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    for name, key in TOKENS.items():
        found = known.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(found, int):
            config[key] = found
    if "general.license" in known:
        config["license"] = line(known["general.license"])
    return config


def _tensors(
    path: Path, kind: str, config: Mapping[str, Any], tensors: list[Any]
) -> Iterator[tuple[str, Stored]]:
    """The weights under transformers' names; those that it does not know under their own."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == kind)
    theirs = get_tensor_name_map(arch, config["num_hidden_layers"])
    model = model_of(config, path)
    assert model
    names = {str(theirs.get_name(name, try_suffixes=(".weight", ".bias"))): name for name in model.shapes}
    names |= {"token_embd.weight": "model.embed_tokens.weight"}  # not the head that is tied to it
    for tensor in tensors:
        if tensor.name not in COMPUTED:
            name = names.get(str(tensor.name), str(tensor.name))
            yield name, _stored(path, tensor, heads_of(name, kind, config))


def line(value: Any) -> str:
    """What a file says, as part of a sentence."""
    return " ".join(str(value).split())[:LINE]


def is_read(tensor: Any) -> bool:
    """Whether the package gguf dequantises the tensor's type."""
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    try:
        dequantize(np.zeros(GGML_QUANT_SIZES[tensor.tensor_type][1], np.uint8), tensor.tensor_type)
    except NotImplementedError:
        return False
    return True


def heads_of(name: str, kind: str, config: Mapping[str, Any]) -> int:
    """The heads of a weight whose rows are interleaved; 0 for all others."""
    if kind in INTERLEAVED and name.endswith(".q_proj.weight"):
        return config["num_attention_heads"]
    return config["num_key_value_heads"] if kind in INTERLEAVED and name.endswith(".k_proj.weight") else 0


def _stored(path: Path, tensor: Any, heads: int) -> Stored:
    """Rows are read and dequantised a few at a time, and a head at a time where they change places."""
    shape, kind = tuple(map(int, tensor.shape[::-1])), tensor.tensor_type
    rows, columns = (1, *shape)[-2:]
    row_bytes, offset = int(tensor.n_bytes) // rows, int(tensor.data_offset)
    if heads and rows % (2 * heads):
        raise EdgemtError(f"{path} has {rows} rows in {tensor.name}, not {heads} heads; copy it again")
    step = rows // heads if heads else max(1, PIECE // columns)

    def pieces() -> Iterator[Array]:
        from gguf.quants import dequantize

        with path.open("rb") as stream:
            stream.seek(offset)
            for start in range(0, rows, step):
                count = min(step, rows - start)
                raw = np.frombuffer(stream.read(count * row_bytes), np.uint8)
                if raw.size != count * row_bytes:
                    raise EdgemtError(f"{path} ends before its weights do; copy it again")
                if kind.name in PLAIN:
                    piece = raw.view(PLAIN[kind.name]).astype(np.float32)
                else:
                    piece = dequantize(raw.reshape(count, row_bytes), kind)
                if heads:
                    piece = piece.reshape(step // 2, 2, columns).swapaxes(0, 1)
                yield piece.reshape(-1)

    return Stored(shape, kind.name, f"{kind.name} in {path.name}", pieces, int(tensor.n_bytes))
