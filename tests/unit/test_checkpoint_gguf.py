"""GGUF files, written with llama.cpp's own package: names, turned heads, quantised values."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgemt.cli import main
from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.read import open_checkpoint

VOCABULARY = 64
NAMES = {
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
}
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def weights(kind: str, tied: bool) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    state = AutoModelForCausalLM.from_config(config).state_dict()
    if tied:
        del state["lm_head.weight"]
    return {name: tensor.numpy() + np.float32(0.01) for name, tensor in state.items()}


def write(path: Path, kind: str, tied: bool = False, **metadata: str) -> dict[str, np.ndarray]:
    """A file as llama.cpp's converter writes it; returns the weights, matrices as Q8_0 rounds them."""
    found = weights(kind, tied)
    writer = gguf.GGUFWriter(path, metadata.pop("arch", kind))
    writer.add_vocab_size(VOCABULARY)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(1000000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_eos_token_id(2)
    writer.add_license("apache-2.0")
    if metadata:
        writer.add_rope_scaling_type(gguf.RopeScalingType(metadata["scaling"]))
    expected = {}
    for name, array in found.items():
        stem, _, part = name.rpartition(".")
        layer = stem.split(".")[2] if "layers" in stem else ""
        inner = stem.split(f"layers.{layer}.")[-1]
        theirs = f"{f'blk.{layer}.' if layer else ''}{NAMES[inner]}.{part}"
        if kind == "llama" and inner in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = 4 if "q_proj" in inner else 2
            array = array.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(array.shape)  # halves interleaved
        if array.ndim == 2:
            data = gguf.quants.quantize(array, Q8_0)
            writer.add_tensor(theirs, data, raw_dtype=Q8_0)
            array = gguf.quants.dequantize(data, Q8_0)
        else:
            writer.add_tensor(theirs, array)
        if kind == "llama" and inner in ("self_attn.q_proj", "self_attn.k_proj"):
            array = array.reshape(heads, 8, 2, 64).swapaxes(1, 2).reshape(array.shape)
        expected[name] = array
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("kind, tied", [("qwen2", False), ("qwen2", True), ("llama", False)])
def test_every_weight_under_its_name(kind: str, tied: bool, tmp_path: Path) -> None:
    expected = write(tmp_path / "model.gguf", kind, tied)
    read = open_checkpoint(tmp_path / "model.gguf")
    read.check()
    assert read.form == "GGUF" and read.licence == "apache-2.0"
    assert read.config["rope_theta"] == 1000000.0 and read.config["tie_word_embeddings"] is tied
    assert set(read.stored) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(read.stored[name].load(), array, err_msg=name)
    assert read.training()["quantisation"].startswith("Q8_0")
    assert "Q8_0 in model.gguf" in read.sources


def test_transformers_reads_the_same_weights(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "llama")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    state = model.state_dict()
    for name, stored in open_checkpoint(tmp_path / "model.gguf").stored.items():
        np.testing.assert_array_equal(stored.load(), state[name].numpy(), err_msg=name)


def test_inspect_tells_the_types_of_the_file_and_their_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "model.gguf", "qwen2")
    assert main(["inspect", str(tmp_path / "model.gguf"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    share = facts["dtypes"]["Q8_0"]
    assert share["bytes"] == share["parameters"] * 34 // 32 and facts["form"] == "GGUF"


def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, "qwen2")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    with pytest.raises(EdgemtError, match=r"ends before its weights do|truncated or damaged"):
        open_checkpoint(path)
    path.write_bytes(whole[:300])
    with pytest.raises(EdgemtError, match="truncated or damaged"):
        open_checkpoint(path)
    write(path, "qwen2", arch="bert")
    with pytest.raises(EdgemtError, match="the architecture bert, and edgemt reads hunyuan-dense, llama"):
        open_checkpoint(path)
    write(path, "qwen2", scaling="yarn")
    with pytest.raises(EdgemtError, match="scales positions by 'yarn'"):
        open_checkpoint(path)
