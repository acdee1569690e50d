"""Training goes on from any Marian checkpoint, with its shape, tokenizer and languages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from marian import canonical, opus, student
from safetensors.torch import load_file, save_file
from training_fixtures import losses, stop_after, tiny_config, write_tiny_data

from edgemt.errors import EdgemtError, UsageError
from edgemt.training.config import Config, Data
from edgemt.training.data import read_pairs
from edgemt.training.families import Origin, make_family
from edgemt.training.families.marian import MarianBatch
from edgemt.training.loop import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like OPUS-MT zh-en: two SentencePiece models, a vocabulary in an order of its own, one direction."""
    return opus(tmp_path_factory.mktemp("opus") / "opus")


def opus_config(steps: int, **changes: object) -> Config:
    directions = {"batch_tokens": 1000, "directions": ["zh-en"]}
    return tiny_config(steps, **{"model": {}, "data": directions, **changes})


@pytest.fixture(scope="module")
def run(data: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory = tmp_path_factory.mktemp("run")
    run = Run(opus_config(40), data, directory / "state", checkpoint)
    run.train()
    run.write_checkpoint(directory / "checkpoint")
    return run


def test_the_loss_is_that_of_transformers(data: Path, checkpoint: Path) -> None:
    config = opus_config(1, label_smoothing=0, model={"dropout": 0})
    family = make_family(config, Origin(data, checkpoint))
    pairs = read_pairs(data / "train.tsv")
    examples = family.examples(pairs, config.data, seed=1)
    batch = examples.batch(np.array([3, 40, 7]))
    assert isinstance(batch, MarianBatch)
    model = transformers.MarianMTModel.from_pretrained(checkpoint)
    tokenizer = transformers.MarianTokenizer.from_pretrained(checkpoint)
    zh, en = ([pairs.texts[side][i] for i in (3, 40, 7)] for side in (0, 1))
    theirs = tokenizer(zh, text_target=en, return_tensors="pt", padding=True)
    assert torch.equal(batch.source, theirs.input_ids) and torch.equal(batch.labels, theirs.labels)
    labels = theirs.labels.masked_fill(theirs.labels == tokenizer.pad_token_id, -100)
    expected = model(theirs.input_ids, theirs.attention_mask, labels=labels).loss
    ours = family.summed_loss(family.model, batch) / batch.target_tokens
    torch.testing.assert_close(ours, expected)


def test_it_learns_and_stays_a_checkpoint_of_its_kind(run: Run, checkpoint: Path) -> None:
    seen = losses(run.directory)
    assert seen[40] < seen[1] - 0.5
    written = run.directory.parent / "checkpoint"
    for name in ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json"):
        assert (written / name).read_bytes() == (checkpoint / name).read_bytes()
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, written))
    assert {n: t.shape for n, t in before.items()} == {n: t.shape for n, t in after.items()}
    assert torch.equal(before["final_logits_bias"], after["final_logits_bias"])
    model = transformers.MarianMTModel.from_pretrained(written).eval()
    tokenizer = transformers.MarianTokenizer.from_pretrained(written)
    with run.average.in_place(run.model):
        (ours,) = run.family.translate(["您哪儿不舒服？"], "zh", "en")
    inputs = tokenizer("您哪儿不舒服？", return_tensors="pt")
    output = model.generate(**inputs, num_beams=1, max_length=2 * inputs.input_ids.shape[1] + 20)
    assert tokenizer.decode(output[0], skip_special_tokens=True) == ours
    canonical(written)  # edgemt export takes it


def test_a_run_goes_on_without_the_checkpoint_that_it_started_from(
    run: Run, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    part = Run(opus_config(40), data, tmp_path / "state", copy)
    stop_after(part, 13)
    part.train()
    shutil.rmtree(copy)
    rest = Run(opus_config(40), data, tmp_path / "state", copy)
    rest.train()
    assert losses(rest.directory) == losses(run.directory)
    rest.write_checkpoint(tmp_path / "checkpoint")
    ours, theirs = (load_file(d / "checkpoint/model.safetensors") for d in (tmp_path, run.directory.parent))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_goes_on_from_the_file_of_a_hand_written_loop(
    data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """A hand-written torch.amp loop's dictionary, with the tokenizer and config.json beside it."""
    folder = shutil.copytree(checkpoint, tmp_path / "loop")
    (folder / "model.safetensors").unlink()
    weights = {
        n: t * 1.5 for n, t in transformers.MarianMTModel.from_pretrained(checkpoint).state_dict().items()
    }
    torch.save({"model": weights, "step": 7}, folder / "run.pt")
    family = make_family(opus_config(1), Origin(data, folder / "run.pt"))
    for name, parameter in family.model.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_a_model_with_tags_is_asked_for_each_direction(data: Path, tmp_path: Path) -> None:
    both = student(tmp_path / "student")
    family = make_family(tiny_config(1, model={}), Origin(data, both))
    ids = json.loads((both / "vocab.json").read_text())
    for directions, tags in (([], {">>zh<<", ">>en<<"}), (["zh-en"], {">>en<<"})):
        examples = family.examples(read_pairs(data / "train.tsv"), Data(directions=directions), seed=1)
        firsts = {int(examples.batch(np.array([i])).source[0, 0]) for i in range(len(examples.weights))}
        assert firsts == {ids[tag] for tag in tags}


def test_what_does_not_fit_is_said(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'translates "zh-en", not en-zh: set data.directions = \["zh-en"\]'):
        Run(opus_config(1, data={}), data, tmp_path / "a", checkpoint).train()
    with pytest.raises(UsageError, match=r"model.d_model = 64, but .* has 32: leave it out"):
        Run(opus_config(1, model={"d_model": 64}), data, tmp_path / "b", checkpoint)
    with pytest.raises(EdgemtError, match=r"no such checkpoint: .*nowhere"):
        Run(opus_config(1), data, tmp_path / "c", tmp_path / "nowhere")
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.shared.weight"] = weights["model.shared.weight"][:-3].clone()
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EdgemtError, match=r"model\.shared\.weight"):
        Run(opus_config(1), data, tmp_path / "d", broken)
    assert not (tmp_path / "d").exists()
