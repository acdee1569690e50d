"""GGUF files, written with llama.cpp's own package: names, turned heads, quantised values."""

from __future__ import annotations

import json
import resource
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from causal_models import GGUF_NAMES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from edgemt.cli import main
from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.read import open_checkpoint

VOCABULARY = 64
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
        theirs = f"{f'blk.{layer}.' if layer else ''}{GGUF_NAMES[inner]}.{part}"
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


def header(*parts: bytes, tensors: int = 0, entries: int = 1, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join(parts)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def array(of: int, count: int) -> bytes:
    return struct.pack("<IIQ", 9, of, count)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(text(b"a"), array(0, 1 << 60)), "an array of 1152921504606846976 items"),
        (header(text(b"a"), array(8, 1 << 40)), "an array of 1099511627776 items"),
        (header(text(b"a"), array(0, 1 << 20)), "goes on for more than"),
        (header(text(b"a"), array(9, 9) + array(9, 9)[4:] * 9), "unknown type 9"),
        (header(struct.pack("<Q", 1 << 63)), "a text of 9223372036854775808 bytes"),
        (header(entries=1 << 62), "counts 4611686018427387904 entries"),
        (header(tensors=1 << 62), "counts 4611686018427387904 tensors"),
        (header(text(b"t"), struct.pack("<IQ", 1 << 31, 5), tensors=1, entries=0), "2147483648 dimensions"),
        (
            header(text(b"t"), struct.pack("<IQQ", 2, 1 << 33, 1 << 33), tensors=1, entries=0),
            "weights at byte",
        ),
        (header(text(b"t"), bytes(4), tensors=1, entries=0), "0 dimensions"),
        (header(text(b"a\nb"), bytes(5)), "a name that is none"),
        (header(version=1), "version 1 of GGUF"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    ],
)
def test_a_header_that_promises_more_than_the_file_has(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(EdgemtError, match=message):
        open_checkpoint(path)


def test_a_long_sparse_file_is_no_reason_to_believe_its_header(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(text(b"a"), array(0, 1 << 30)))
    with path.open("r+b") as file:
        file.truncate(1 << 31)
    with pytest.raises(EdgemtError, match="an array of 1073741824 items"):
        open_checkpoint(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write(path, "llama")
    return path


CHANGES = st.tuples(
    st.integers(4, 2500),  # the header's bytes
    st.sampled_from([0, 1, 2, 9, 1 << 31, 1 << 40, (1 << 64) - 1]) | st.integers(0, 255),
    st.sampled_from([1, 4, 8]),
    st.integers(0, 9),  # bytes that are left out there
)


@given(st.lists(CHANGES, min_size=1, max_size=3) | st.binary(max_size=200))
@settings(max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_bytes_are_it_ends_soon_and_says_so(small: Path, changes: list | bytes) -> None:
    data = bytearray(small.read_bytes())
    if isinstance(changes, bytes):
        data[4:] = changes
    else:
        for at, value, size, less in changes:
            data[at : at + size + less] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    path = small.with_name("model.gguf")
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read = open_checkpoint(path)
        read.check()
    except EdgemtError as error:
        assert "\n" not in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


@pytest.mark.parametrize("change", ["layers", "embedding", "type"])
def test_what_a_header_says_of_the_model_is_compared_with_its_weights(change: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, "llama")
    data = path.read_bytes()
    if change == "layers":
        at = data.index(b"llama.block_count") + len("llama.block_count") + 4
        data = data[:at] + struct.pack("<I", 1 << 30) + data[at + 4 :]
    elif change == "embedding":
        data = data.replace(b"token_embd.weight", b"token_embe.weight")
    else:
        at = data.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16
        data = data[:at] + struct.pack("<I", gguf.GGMLQuantizationType.Q8_1) + data[at + 4 :]
    path.write_bytes(data)
    message = "the type Q8_1|before its weights do" if change == "type" else "lacks weights of the llama"
    with pytest.raises(EdgemtError, match=message):
        open_checkpoint(path).check()
