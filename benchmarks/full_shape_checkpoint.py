"""A checkpoint of HY-MT1.5's full shape with random weights and a synthetic tokenizer of its size."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edgemt.training.chat_tokenizer import (
    ASSISTANT,
    BEGIN,
    CHAT_TEMPLATE,
    END_OF_ANSWER,
    END_OF_SYSTEM,
    END_OF_TURN,
    PAD,
    USER,
    WORDS,
)

# config.json of the published models; the 7B's has other special tokens, which change nothing measured here.
COMMON: dict[str, Any] = {
    "architectures": ["HunYuanDenseV1ForCausalLM"],
    "model_type": "hunyuan_v1_dense",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 262144,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.56.1",
}
SHAPES: dict[str, dict[str, Any]] = {
    "1.8B": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 120818,
    },
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128167,
    },
}
ADDED = 818  # tokens behind the byte pairs
PLACES = {BEGIN: 0, PAD: 2, USER: 6, ASSISTANT: 7, END_OF_ANSWER: 20, END_OF_SYSTEM: 21, END_OF_TURN: 26}
GENERATION = {"temperature": 0.7, "top_k": 20, "top_p": 0.6, "repetition_penalty": 1.05, "do_sample": True}
LAYERS_A_SHARD = 4


def write_checkpoint(directory: Path, size: str, layers: int | None = None) -> Path:
    """Write it, a shard in memory at a time; `layers` instead of all 32."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {**COMMON, **SHAPES[size]}
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    first = config["vocab_size"] - ADDED
    config |= {
        "bos_token_id": first,
        "eos_token_id": first + PLACES[END_OF_ANSWER],
        "pad_token_id": first + PLACES[PAD],
    }
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", GENERATION)
    write_tokenizer(directory, first)
    torch.manual_seed(0)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards(config), 1):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, directory / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return directory


def shards(config: dict[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    d, ffn, e = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    h, kv = config["num_attention_heads"] * e, config["num_key_value_heads"] * e
    shapes = {
        "self_attn.q_proj": (h, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, h),
        "mlp.gate_proj": (ffn, d),
        "mlp.up_proj": (ffn, d),
        "mlp.down_proj": (d, ffn),
    }
    norms = {"input_layernorm": d, "post_attention_layernorm": d}
    norms |= {f"self_attn.{name}_layernorm": e for name in ("query", "key")}

    def drawn(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, dtype=torch.bfloat16) * config["initializer_range"]).contiguous()

    yield {"model.embed_tokens.weight": drawn(config["vocab_size"], d)}
    depth = config["num_hidden_layers"]
    for start in range(0, depth, LAYERS_A_SHARD):
        found = {}
        for layer in range(start, min(start + LAYERS_A_SHARD, depth)):
            at = f"model.layers.{layer}"
            found |= {f"{at}.{name}.weight": drawn(*shape) for name, shape in shapes.items()}
            found |= {
                f"{at}.{name}.weight": torch.ones(size, dtype=torch.bfloat16) for name, size in norms.items()
            }
        yield found
    yield {"model.norm.weight": torch.ones(d, dtype=torch.bfloat16)}


def write_tokenizer(directory: Path, pieces: int) -> None:
    """Byte-level BPE of `pieces`: bytes, pairs of them, pairs with another byte; and HY-MT's marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: number for number, piece in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    pairs = itertools.product(alphabet, alphabet)
    longer = ((a + b, c) for a, b, c in itertools.product(alphabet, repeat=3))
    for pair in itertools.islice(itertools.chain(pairs, longer), pieces - len(alphabet)):
        merges.append(pair)
        vocab["".join(pair)] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    named = {place: token for token, place in PLACES.items()}
    marks = [named.get(place, f"<｜hy_place▁holder▁{place}｜>") for place in range(ADDED)]
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END_OF_ANSWER,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(directory, save_jinja_files=False)


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
