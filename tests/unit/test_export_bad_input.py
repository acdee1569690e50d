"""Decoder-only checkpoints that are incomplete, foreign or hostile: one sentence each, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import test_checkpoint_gguf as gguf_files
import torch
from safetensors.torch import load_file, save_file
from untrained import untrained

from edgemt.bundle import open_bundle
from edgemt.cli import main
from edgemt.export.bundles import generation
from edgemt.export.checkpoints.facts import excluded

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("bad") / "checkpoint", shards="200KB")


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def refused(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    """The sentence that an export of `path` ends with."""
    output = path.parent / "out"
    assert main(["export", str(path), "--fp32", "-o", str(output)]) in (1, 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said and not output.exists() and not list(path.parent.glob(".out*"))
    return said.strip().split("\n")[-1]


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def test_tokenizer_files_missing_damaged_or_of_another_model(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = checkpoint / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text[: len(text) // 2], encoding="utf-8")
    assert f"the tokenizer in {checkpoint} cannot be read" in refused(capsys, checkpoint)
    file.unlink()
    assert f"no tokenizer.json in {checkpoint}: copy the checkpoint's tokenizer files" in refused(
        capsys, checkpoint
    )
    config = checkpoint / "config.json"
    file.write_text(text, encoding="utf-8")
    for rows in (599, 700):
        change(config, vocab_size=rows)
        message = refused(capsys, checkpoint)
        assert f"the tokenizer in {checkpoint} has 600 tokens and the model's embedding {rows}" in message
        assert "give the tokenizer files of this checkpoint" in message


def test_an_embedding_padded_beyond_the_tokenizer_never_answers_with_its_padding(tmp_path: Path) -> None:
    checkpoint = untrained(tmp_path / "checkpoint", vocab_size=640)
    assert main(["export", str(checkpoint), "--fp32", "-o", str(tmp_path / "out")]) == 0
    assert set(range(600, 640)) <= set(open_bundle(tmp_path / "out").manifest.model.suppress)


def test_missing_shards_and_weights_that_are_not_numbers(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * float("nan")}, shard, metadata={"format": "pt"})
    message = refused(capsys, checkpoint)
    assert f"NaN or infinite: {name}" in message and "export an earlier checkpoint" in message
    shard.unlink()
    message = refused(capsys, checkpoint)
    assert f"lacks {shard.name}" in message and "copy the whole checkpoint" in message


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ ''.__class__.__mro__ }}", "does what a sandbox forbids"),
        ("{{ messages.append(1) }}", "does what a sandbox forbids"),
        ("{% include '/etc/passwd' %}", "does not work"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 3 s"),
        ("{{ 'x' * 9999999999 }}", "takes more than 3 s or 512 MB"),
        ("{% for i in range(99999) %}{{ messages[0]['content'] }}{% endfor %}", "characters and more"),
        ("{{ messages[0]['content'] | upper }}", "does not hold each message once"),
        ("{{ raise_exception('no user') }}", "does not work (no user)"),
        ("{{ messages[0]", "does not work"),
    ],
)  # fmt: skip
def test_chat_templates_that_do_more_than_they_should(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], template: str, said: str
) -> None:
    change(checkpoint / "tokenizer_config.json", chat_template=template)
    message = refused(capsys, checkpoint)
    assert f"the chat template in {checkpoint}" in message and said in message, message


def test_gguf_files_cut_foreign_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.gguf"
    gguf_files.write(file, "llama")
    content = file.read_bytes()
    for length in (3, 4, 20, 200, 1500, len(content) - 100):
        file.write_bytes(content[:length])
        message = refused(capsys, file)
        assert (str(file) in message and "copy it again" in message) or "is not a checkpoint" in message, (
            message
        )
    file.write_bytes(b"GGML" + content[4:])
    assert "is not a checkpoint" in refused(capsys, file)
    gguf_files.write(file, "llama", arch="mamba")
    message = refused(capsys, file)
    assert "holds the architecture mamba" in message and "edgemt reads hunyuan-dense, llama" in message


def test_sampling_limit_and_licence_come_from_the_checkpoint(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.6,
        "repetition_penalty": 1.05,
        "max_source_tokens": 100,
    }
    change(checkpoint / "generation_config.json", **said)
    territory = (
        "THIS LICENSE AGREEMENT DOES NOT APPLY IN THE EUROPEAN UNION, UNITED KINGDOM AND SOUTH KOREA AND IS"
    )
    (checkpoint / "LICENSE").write_text(f"Community License\n\nTerms.\n{territory}\nLIMITED.\nMore.\n")
    change(checkpoint / "config.json", license="tencent-community")
    assert main(["export", str(checkpoint), "--fp32", "-o", str(tmp_path / "out")]) == 0
    line = next(line for line in capsys.readouterr().err.split("\n") if "licence: " in line)
    assert line.startswith('edgemt export: licence: tencent-community; its text says: "THIS LICENSE')
    assert line.endswith('SOUTH KOREA AND IS LIMITED."')
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.generation["max_source_tokens"] == said.pop("max_source_tokens")
    assert manifest.generation["sampling"] == said
    assert "sampling" not in generation(said, "seq2seq") and "sampling" not in generation({}, "causal")
    (checkpoint / "LICENSE").write_text("Apache License\nVersion 2.0\n")
    assert excluded(checkpoint) is None
