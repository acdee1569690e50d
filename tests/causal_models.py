"""Tiny decoder-only models with random weights, of every kind that has a canonical graph."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from edgemt.export.checkpoints.tensors import of_tensor

VOCABULARY, EOS = 300, 2
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # what transformers calls a weight: what GGUF does, but for the layer
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
CASES: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": {"head_dim": 32, "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "llama": {"tie_word_embeddings": False, "rope_scaling": LLAMA3, "mlp_bias": True},
}


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **CASES[kind]})).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases as a trained model has them: not all alike
            torch.nn.init.normal_(parameter, float(parameter.detach().mean()), 0.2)
    return model


def checkpoint_of(model: PreTrainedModel, **changes: Any) -> Any:
    return SimpleNamespace(
        architecture=type(model).__name__,
        config={**json.loads(model.config.to_json_string()), **changes},
        directory=Path("checkpoint"),
        stored={
            name: of_tensor(tensor, "memory")
            for name, tensor in model.state_dict().items()
            if name != "lm_head.weight" or not model.config.tie_word_embeddings
        },
    )
