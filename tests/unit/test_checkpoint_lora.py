"""Adapters that peft trains and writes here, merged: equal to what peft itself merges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import marian
import numpy as np
import peft
import pytest
import torch
import transformers
import zero_files
from amp_loops import graph_weights, loss_of, model_of
from safetensors.torch import load_file, save_file
from transformers import MarianMTModel, Trainer, TrainingArguments

from edgemt.cli import main
from edgemt.errors import EdgemtError, UsageError
from edgemt.export.checkpoints.forms.lora import CONFIG
from edgemt.export.checkpoints.read import Checkpoint, read_checkpoint, read_weights

torch.set_num_threads(1)
TARGETS = ["q_proj", "v_proj", "fc1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marian.student(tmp_path_factory.mktemp("lora") / "base")


def train(base: Path, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Train an adapter on `base`, write it to `out`; the state dict that peft merges."""
    torch.manual_seed(3)
    model = model_of(base)
    model.name_or_path = str(base)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, **options}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    for step in range(3):
        loss_of(adapted, step).backward()  # pyright: ignore[reportArgumentType]
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(str(out), save_embedding_layers=False)
    merged = adapted.eval().merge_and_unload()  # pyright: ignore[reportCallIssue]
    return {name: tensor.detach() for name, tensor in merged.state_dict().items()}


def assert_merged(
    read: Checkpoint, expected: dict[str, torch.Tensor], base: Path | dict[str, torch.Tensor], changed: int
) -> None:
    """All weights are peft's, and the base's where the adapter changes nothing."""
    untouched = MarianMTModel.from_pretrained(base).state_dict() if isinstance(base, Path) else base
    differing = 0
    for name, stored in read.stored.items():
        values = stored.load()
        np.testing.assert_allclose(values, expected[name].numpy(), rtol=0, atol=1e-6, err_msg=name)
        differing += not np.array_equal(values, untouched[name].numpy())
    assert differing == changed


# 2 encoder layers with 1, a decoder layer with 2 attentions: 4 × 2 projections and 3 fc1, and their biases.
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 11),
    "patterns": (
        {
            "rank_pattern": {"decoder.layers.0.fc1": 2, "q_proj": 3},
            "alpha_pattern": {"encoder.*fc1": 1, "v_proj": 11},
        },
        11,
    ),
    "rank-stabilised": ({"use_rslora": True}, 11),
    "DoRA": ({"use_dora": True}, 11),
    "biases of adapted layers": ({"bias": "lora_only"}, 22),
    "all biases": ({"bias": "all"}, 11 + 29),
    "biases of its own": ({"lora_bias": True}, 22),
    "whole modules": ({"modules_to_save": ["final_layer_norm"]}, 11 + 6),
    "gaussian": ({"init_lora_weights": "gaussian"}, 11),
    "two layers": ({"layers_to_transform": [1], "layers_pattern": "layers"}, 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_as_peft_does(kind: str, base: Path, tmp_path: Path) -> None:
    options, changed = KINDS[kind]
    expected = train(base, tmp_path / "adapter", **options)
    read = read_checkpoint(tmp_path / "adapter")
    assert read.form == "LoRA on safetensors" and read.directory == base
    assert_merged(read, expected, base, changed)
    assert any(
        stored.source == "model.safetensors + adapter_model.safetensors" for stored in read.stored.values()
    )
    graph = graph_weights(read)["model.decoder.layers.0.fc1.weight"]
    np.testing.assert_allclose(
        graph, expected["model.decoder.layers.0.fc1.weight"].numpy(), rtol=0, atol=1e-6
    )


def test_an_untied_embedding(tmp_path: Path) -> None:
    """Marian with an embedding a side: the encoder's is tied to nothing."""
    loose = {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False}
    base = marian.student(tmp_path / "base", **loose)
    targets = ["model.encoder.embed_tokens", "fc2"]
    for name, options in {"both": {}, "head": {"modules_to_save": ["lm_head"]}}.items():
        expected = train(base, tmp_path / name, target_modules=targets, **options)
        assert_merged(read_checkpoint(tmp_path / name), expected, base, 4 + (name == "head"))


CAUSAL = {
    "HunYuanDenseV1": (
        transformers.HunYuanDenseV1Config(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
            num_key_value_heads=1, vocab_size=50, max_position_embeddings=32, tie_word_embeddings=True,
        ),
        {"target_modules": "all-linear"},
        14,
    ),
    "GPT-2, whose Conv1D is [in, out]": (
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16),
        {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True},
        4,
    ),
    "GPT-2 with DoRA": (
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16),
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
        2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_models(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not exported yet, but inspected and to be trained on."""
    config, options, changed = CAUSAL[kind]
    torch.manual_seed(4)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.name_or_path = "../base"
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **options))
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    expected = adapted.merge_and_unload().state_dict()  # pyright: ignore[reportCallIssue]
    assert_merged(read_checkpoint(tmp_path / "adapter"), expected, untouched, changed)
    assert main(["inspect", str(tmp_path / "adapter")]) == 0
    text = capsys.readouterr().out
    assert "LoRA on safetensors" in text and f"{changed} tensors" in text and "problems: none" in text


def test_pickled_and_bases_of_other_forms(base: Path, tmp_path: Path) -> None:
    expected = train(base, tmp_path / "adapter")
    torch.save(
        load_file(tmp_path / "adapter" / "adapter_model.safetensors"),
        tmp_path / "adapter" / "adapter_model.bin",
    )
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    folder = Path(
        shutil.copytree(base, tmp_path / "loop", ignore=shutil.ignore_patterns("model.safetensors"))
    )
    state = MarianMTModel.from_pretrained(base).state_dict()
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": wrapped, "optimizer": {}}, folder / "run.pt")
    read = read_checkpoint(tmp_path / "adapter", base=folder / "run.pt")
    assert read.form.startswith("LoRA on ") and read.directory == folder
    assert_merged(read, expected, base, 11)


def test_adapters_of_edgemt_train(base: Path, tmp_path: Path) -> None:
    """`lora.merge = false` writes adapters alone, and edgemt.json beside them."""
    train(base, tmp_path / "adapter")
    (tmp_path / "adapter" / "edgemt.json").write_text(
        '{"precision": "fp16-o1", "steps": 12, "loss_scale": 64.0}'
    )
    told = read_checkpoint(tmp_path / "adapter").amp
    assert (told["written_by"], told["precision"], told["steps"], told["loss_scale"]) == (
        "edgemt train", "fp16-o1", 12, 64.0
    )  # fmt: skip


def test_relative_and_absent_bases(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = train(base, tmp_path / "runs" / "adapter")
    shutil.copytree(base, tmp_path / "model")
    change_config(tmp_path / "runs" / "adapter", base_model_name_or_path="../../model")
    assert_merged(read_checkpoint(tmp_path / "runs" / "adapter"), expected, base, 11)
    change_config(tmp_path / "runs" / "adapter", base_model_name_or_path="Helsinki-NLP/opus-mt-zh-en")
    command = ["inspect", str(tmp_path / "runs" / "adapter")]
    assert main(command) == 2
    assert "Helsinki-NLP/opus-mt-zh-en, which is not on this machine" in capsys.readouterr().err
    assert main([*command, "--base", str(base)]) == 0
    assert "LoRA on safetensors" in capsys.readouterr().out
    assert main(["inspect", str(base), "--base", str(base)]) == 2
    assert "is none: it has no adapter_config.json" in capsys.readouterr().err


def test_export(base: Path, tmp_path: Path) -> None:
    expected = train(base, tmp_path / "adapter")
    command = [
        "export",
        str(tmp_path / "adapter"),
        "--fp32",
        "-o",
        str(tmp_path / "out"),
        "--base",
        str(base),
    ]
    assert main(command) == 0
    content = (tmp_path / "out" / "weights.bin").read_bytes()
    merged = read_checkpoint(tmp_path / "adapter").stored["model.decoder.layers.0.fc1.weight"].load()
    assert np.abs(merged - expected["model.decoder.layers.0.fc1.weight"].numpy()).max() < 1e-6
    assert merged.T.tobytes() in content
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["provenance"]["training"]["base"] == "safetensors"


def test_trainers_adapter(base: Path, tmp_path: Path) -> None:
    model = MarianMTModel.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=TARGETS))
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(5, 300, (4, 7))]
    settings = {"max_steps": 2, "save_steps": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    arguments = TrainingArguments(str(tmp_path / "run"), bf16=True, learning_rate=0.02, **settings)  # pyright: ignore
    Trainer(adapted, arguments, train_dataset=rows).train()  # pyright: ignore
    read = read_checkpoint(tmp_path / "run" / "checkpoint-2")
    assert read.amp["steps"] == 2 and read.amp["written_by"] == "transformers Trainer"
    merged = adapted.eval().merge_and_unload().state_dict()  # pyright: ignore[reportCallIssue]
    assert_merged(read, merged, base, 11)


def test_masters_of_an_adapter_under_zero3(tmp_path: Path) -> None:
    """The Trainer under DeepSpeed left an adapter file without tensors: all is in the shards of two ranks."""
    case = "trainer-lora-zero3-bf16"
    folder, base = (
        zero_files.copy(f"{case}/checkpoint-6", tmp_path),
        zero_files.copy(f"{case}/base", tmp_path),
    )
    assert load_file(folder / "adapter_model.safetensors") == {}
    read = read_checkpoint(folder)
    assert read.form == "LoRA (DeepSpeed ZeRO-3) on safetensors"
    assert read.amp["left_aside"] == "adapter_model.safetensors: it is empty"
    shards = read_weights(folder, base).tensors
    state = load_file(base / "model.safetensors")
    for name, stored in shards.items():
        if name.endswith(("q_proj.weight", "fc1.weight")):
            assert "FP32 masters in global_step6/*_optim_states.pt" in stored.source
            assert not np.allclose(stored.load(), state[name].numpy(), atol=1e-3)
        else:
            assert np.array_equal(stored.load(), state[name].numpy()) != ("optim_states" in stored.source)
    masters = zero_files.masters(folder)
    bias = "model.encoder.layers.0.self_attn.q_proj.bias"
    trained = masters[f"base_model.model.{bias.removesuffix('bias')}base_layer.bias"]
    assert zero_files.digest(shards[bias].load()) == trained
    shutil.rmtree(folder / "global_step6")
    with pytest.raises(EdgemtError, match="holds no tensor, as the Trainer writes it under ZeRO-3"):
        read_checkpoint(folder)


def change_config(adapter: Path, **changes: Any) -> None:
    file = adapter / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "VERA"}, "is of the kind VERA, not LORA; merge it where it was trained"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, "uses alora_invocation_tokens, which edgemt does not"),
    "replicated": ({"layer_replication": [[0, 2], [1, 3]]}, "uses layer_replication"),
    "tokens": ({"trainable_token_indices": [7]}, "uses trainable_token_indices"),
    "of the future": ({"use_something_new": True}, "uses use_something_new"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "started with pissa_niter_4, which changed the base's"),
    "biases lost": ({"bias": "all"}, "trained biases .bias=all. but holds none; merge it"),
    "DoRA lost": ({"use_dora": True}, r"lacks a part of model\.decoder\.layers\.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused(case: str, base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter")
    changes, sentence = REFUSED[case]
    change_config(tmp_path / "adapter", **changes)
    with pytest.raises(EdgemtError, match=sentence) as raised:
        read_checkpoint(tmp_path / "adapter")
    assert "\n" not in str(raised.value) and str(tmp_path / "adapter") in str(raised.value)


def test_tied_weights_are_refused(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "head", modules_to_save=["lm_head"])
    with pytest.raises(EdgemtError, match=r"changes lm_head\.weight, which the model ties to another weight"):
        read_checkpoint(tmp_path / "head")


def test_another_base_and_damaged_adapters(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    train(base, adapter)
    wide = marian.student(tmp_path / "wide", d_model=48)
    with pytest.raises(EdgemtError, match=r"which its base in .*wide has in another shape"):
        read_checkpoint(adapter, base=wide)
    short = marian.student(tmp_path / "short", encoder_layers=1)
    with pytest.raises(
        EdgemtError, match=r"encoder\.layers\.1\.fc1\.weight.*which its base .*short does not have"
    ):
        read_checkpoint(adapter, base=short)
    with pytest.raises(EdgemtError, match="no such checkpoint"):
        read_checkpoint(adapter, base=tmp_path / "nowhere")
    tensors = load_file(adapter / "adapter_model.safetensors")
    names = sorted(tensors)
    save_file(
        {name: tensors[name] for name in names if name != names[0]}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(EdgemtError, match=r"lacks a part of model\.decoder"):
        read_checkpoint(adapter)
    tensors[names[0]][0, 0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(
        EdgemtError, match=r"NaN or infinite: model\.decoder\.layers\.0\.encoder_attn\.q_proj\.weight"
    ):
        read_checkpoint(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(EdgemtError, match=r"lacks adapter_model\.safetensors or adapter_model\.bin"):
        read_checkpoint(adapter)
    (adapter / CONFIG).write_text("{")
    with pytest.raises(EdgemtError, match=r"adapter_config\.json cannot be read"):
        read_checkpoint(adapter)
    (adapter / CONFIG).write_text("{}")
    with pytest.raises(UsageError, match="a base that it does not name"):
        read_checkpoint(adapter)
