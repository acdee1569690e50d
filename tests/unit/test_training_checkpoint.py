"""The checkpoint is a plain Hugging Face Marian model: transformers alone reads it and translates alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from training_fixtures import stop_after, tiny_config, write_tiny_data

from edgemt.cli import main
from edgemt.errors import UsageError
from edgemt.export.checkpoints.read import open_checkpoint
from edgemt.tokenizer import Tokenizer
from edgemt.training.loop import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("training")
    run = Run(tiny_config(60, evaluate_sentences=4), write_tiny_data(directory / "data"), directory / "run")
    run.train()
    run.write_checkpoint(directory / "checkpoint")
    run.write_checkpoint(directory / "checkpoint")  # replaces the first
    return run


@pytest.fixture(scope="module")
def checkpoint(run: Run) -> Path:
    return run.directory.parent / "checkpoint"


def test_transformers_reads_it_and_translates_alike(run: Run, checkpoint: Path) -> None:
    model = transformers.MarianMTModel.from_pretrained(checkpoint).eval()
    tokenizer = transformers.MarianTokenizer.from_pretrained(checkpoint)
    with run.average.in_place(run.model):
        ours = run.family.translate(["您哪儿不舒服？", "好的。"], "zh", "en")
    for text, translation in zip(["您哪儿不舒服？", "好的。"], ours, strict=True):
        inputs = tokenizer(f">>en<< {text}", return_tensors="pt")
        output = model.generate(**inputs, max_length=2 * inputs.input_ids.shape[1] + 20)
        assert tokenizer.decode(output[0], skip_special_tokens=True) == translation
    assert model.lm_head.weight.data_ptr() == model.model.shared.weight.data_ptr()


def test_it_is_what_save_pretrained_writes(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    transformers.MarianMTModel.from_pretrained(checkpoint).save_pretrained(tmp_path)
    for name in ("config.json", "generation_config.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (checkpoint, tmp_path))
        assert ours == theirs
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_its_tokenizer_gives_our_ids(run: Run, checkpoint: Path) -> None:
    tokenizer = transformers.MarianTokenizer.from_pretrained(checkpoint)
    ours = Tokenizer(checkpoint)
    text = "孩子发烧38.5℃，吐了３次！"
    assert tokenizer(f">>en<< {text}").input_ids == [ours.ids[">>en<<"], *ours.encode(text), 0]
    assert tokenizer.pad_token_id == 2


def test_the_record_says_how_it_was_trained(run: Run, checkpoint: Path) -> None:
    record = json.loads((checkpoint / "edgemt.json").read_text())
    assert record["precision"] == "bf16" and record["steps"] == 60 and record["skipped_steps"] == 0
    assert record["target_tokens"] == run.tokens > 0
    assert set(record["dev_scores"]) == {"clinical zh-en", "clinical en-zh"}
    assert record["config"]["model"]["d_model"] == 16


def test_a_new_run_starts_from_it(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    data = run.directory.parent / "data"
    fresh = Run(tiny_config(1), data, tmp_path / "fresh", init=checkpoint)
    for name, parameter in fresh.average.parameters.items():
        assert torch.equal(parameter, run.average.weights[name])
    with pytest.raises(UsageError, match=r"model.d_model = 32, but .* has 16"):
        wider = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "ffn": 32}
        Run(tiny_config(1, model=wider), data, tmp_path / "wider", init=checkpoint)


def test_the_licence_of_its_base_goes_along(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(checkpoint, tmp_path / "base"))
    (base / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n", encoding="utf-8")
    data = run.directory.parent / "data"
    part = Run(tiny_config(4), data, tmp_path / "run", init=base)
    stop_after(part, 2)
    part.train()
    shutil.rmtree(base)
    rest = Run(tiny_config(4), data, tmp_path / "run")
    rest.train()
    rest.write_checkpoint(tmp_path / "out")
    for made in ("out", "run"):
        read = open_checkpoint(tmp_path / made)
        assert read.licence == "cc-by-sa-4.0" and read.amp["base"] == "base"
    assert "base" not in run.record() and "licence" not in run.record()  # it started from no checkpoint


def test_the_command_exports_a_saved_state(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "train.toml"
    config.write_text(
        "evaluate_sentences = 4\ndata = { batch_tokens = 1000 }\n"
        "model = { d_model = 16, encoder_layers = 1, decoder_layers = 1, heads = 2, ffn = 32 }\n"
    )
    arguments = ["train", str(config), "--data", str(run.directory.parent / "data"), "--export-checkpoint"]
    assert main([*arguments, "--state", str(run.directory), "--out", str(tmp_path / "out")]) == 0
    assert "step 60" in capsys.readouterr().out
    assert (tmp_path / "out/model.safetensors").read_bytes() == (
        run.directory.parent / "checkpoint/model.safetensors"
    ).read_bytes()
    assert main([*arguments, "--state", str(tmp_path / "none")]) == 2
