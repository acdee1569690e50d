"""llama.cpp built for the Cortex-A76: it says what edgemt says, and its products are dot products."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import pytest
import torch
from causal_bundles import write_bundle
from causal_models import CASES, GGUF_NAMES, SIZES
from transformers import AutoConfig, AutoModelForCausalLM

from edgemt.bundle import open_bundle
from tests.device import llama_aarch64
from tests.device.count_causal import count, elements_of, prompt_of

missing = [tool for tool in ("cmake", f"{llama_aarch64.COMPILER}-g++") if shutil.which(tool) is None]


def write_gguf(path: Path, vocabulary: int, kind: gguf.GGMLQuantizationType) -> Path:
    """The Qwen2 model of write_bundle, its matrices as `kind`. It has no tokenizer: ids go in and out."""
    config = AutoConfig.for_model("qwen2", **{**SIZES, **CASES["qwen2"], "vocab_size": vocabulary})
    torch.manual_seed(0)
    state = AutoModelForCausalLM.from_config(config).state_dict()
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(vocabulary)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    del state["lm_head.weight"]  # tied
    for name, tensor in state.items():
        for theirs, ours in {**GGUF_NAMES, "model.layers": "blk"}.items():
            name = name.replace(theirs, ours)
        array, stored = tensor.numpy(), kind if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.slow  # four minutes of CPU time where llama.cpp was not built before
@pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)}: not installed")
def test_llama_cpp_and_edgemt_are_counted_over_the_same_tokens(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "qwen2")
    prompt, elements = prompt_of(bundle, 40), elements_of(bundle)
    ours = count(bundle, prompt, 6, 1, elements)
    size = open_bundle(bundle).manifest.model.vocab_size
    theirs = {
        kind.name: count(write_gguf(tmp_path / f"m.{kind.name}.gguf", size, kind), prompt, 6, 1, elements)
        for kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q4_0)
    }
    assert theirs["F32"]["tokens"] == ours["tokens"] and len(ours["tokens"]) == 6
    assert theirs["F32"]["decode_dots"] == 0
    assert elements / 16 <= theirs["Q4_0"]["decode_dots"] < elements / 16 * 1.1
    assert theirs["Q4_0"]["precision"] == "Q4_0"
