"""`--preset`: a configuration for each kind of checkpoint, data without a leak, and whole short runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from causal_fixtures import causal_config, clinical_rows, write_causal_data
from safetensors.torch import save_file
from support import CHECKPOINT, Cli

from edgemt.errors import EdgemtError, UsageError
from edgemt.training import presets
from edgemt.training.config import load_config
from edgemt.training.data import read_pairs
from edgemt.training.families import Origin, make_family
from edgemt.training.instructions import read_terms
from edgemt.training.presets import medical

PRESET = "medical-zh-en"
ACCEPTANCE = "手术应在无菌环境下进行"
SHORT = [
    "schedule.steps=4", "schedule.warmup=1", "evaluate_sentences=2", "data.batch_tokens=600", "keep.best=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        made = medical.prepared()
        assert made is not None and medical.prepared() == made
    return made


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal checkpoint, and beside it the data that it was made for."""
    directory = tmp_path_factory.mktemp("causal")
    data = write_causal_data(directory / "data")
    torch.manual_seed(1)
    family = make_family(causal_config(), Origin(data, None))
    (directory / "checkpoint").mkdir()
    family.write_files(directory / "checkpoint")
    weights = directory / "checkpoint" / "model.safetensors"
    save_file(family.weights(), weights, metadata={"format": "pt"})
    return directory / "checkpoint"


def test_training_and_held_out_lines_share_no_side(folder: Path) -> None:
    train, dev = read_pairs(folder / "train.tsv"), read_pairs(folder / "dev.tsv")
    rows = clinical_rows(10**6)
    held = [row for row in rows if row[5] != "train"]
    for side in (0, 1):
        seen = {medical.comparable(text) for text in train.texts[side]}
        assert not seen & {medical.comparable(row[3 + side]) for row in held}
    assert list(zip(*dev.texts, strict=True)) == [(row[3], row[4]) for row in rows if row[5] == "dev"]
    assert train.corpus.count("clinical") > 0.98 * sum(row[5] == "train" for row in rows)
    assert train.corpus.count("terms") > 2900
    assert ACCEPTANCE not in (folder / "train.tsv").read_text(encoding="utf-8")
    assert ACCEPTANCE not in (folder / "dev.tsv").read_text(encoding="utf-8")


def test_scenarios_are_documents_in_order(folder: Path) -> None:
    train = read_pairs(folder / "train.tsv")
    first = [row for row in clinical_rows(60) if row[0] == "A001"]
    assert train.document[: len(first)] == ["A001"] * len(first)
    assert train.texts[0][: len(first)] == [row[3] for row in first]


def test_terms_come_with_their_variants(folder: Path) -> None:
    with (folder / "terms.tsv").open(encoding="utf-8", newline="") as file:
        pairs = {tuple(row) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    hyperthyroidism = {(zh, en) for zh, en in pairs if "甲状腺功能亢进" in zh or zh == "甲亢"}
    assert ("甲亢", "overactive thyroid") in hyperthyroidism
    assert ("甲状腺功能亢进症", "hyperthyroidism") in hyperthyroidism
    assert read_terms(folder / "terms.tsv", ("zh", "en")) is not None


def test_each_kind_of_checkpoint_has_its_configuration(
    folder: Path, causal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"marian": CHECKPOINT, "causal": causal}
    for family, init in named.items():
        file, data = presets.find(PRESET, init, folder)
        config = load_config(None, preset=file)
        assert (config.model.family, config.lora.rank, data) == (family, 0, folder)
    monkeypatch.setattr(presets, "SMALL", 1000)
    file, _ = presets.find(PRESET, causal, folder)
    config = load_config(None, preset=file)
    assert (config.model.family, config.gradient_checkpointing) == ("causal", True) and config.lora.rank > 0
    assert presets.find(PRESET, CHECKPOINT, folder)[0].name == "medical-zh-en.marian.toml"


def test_what_is_missing_is_said(
    folder: Path, causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no preset legal-zh-en; choose of medical-zh-en"):
        presets.find("legal-zh-en", causal, folder)
    with pytest.raises(UsageError, match="say which with --init"):
        presets.find(PRESET, None, folder)
    with pytest.raises(EdgemtError, match="has no weights"):
        presets.find(PRESET, tmp_path, folder)
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UsageError, match="of the kind t5, which is not trained here"):
        presets.find(PRESET, tmp_path, folder)
    monkeypatch.setattr(medical, "CORPUS", tmp_path)
    with pytest.raises(UsageError, match=r"comes with edgemt's source.*--data"):
        presets.find(PRESET, causal, None)


def test_a_cache_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EdgemtError, match=r"cannot be written .*XDG_CACHE_HOME"):
        medical.prepared()


def trained(edgemt: Cli, init: Path, directory: Path, *arguments: object) -> dict[str, object]:
    settings = [word for setting in SHORT for word in ("--set", setting)]
    result = edgemt(
        *("train", "--preset", PRESET, "--init", init, "--state", directory / "state"),
        *("--out", directory / "out", *settings, *arguments),
    )
    assert result.returncode == 0, result.stderr.decode()
    return json.loads((directory / "out" / "edgemt.json").read_text(encoding="utf-8"))


def test_the_command_fine_tunes_a_causal_checkpoint(edgemt: Cli, causal: Path, tmp_path: Path) -> None:
    data = causal.parent / "data"
    record = trained(edgemt, causal, tmp_path, "--data", data, "--set", "lora.rank=4")
    assert record["steps"] == 4 and set(record["dev_scores"]) == {"clinical zh-en", "clinical en-zh"}  # type: ignore
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "marian"])
def test_the_preset_runs_on_its_own_corpus(
    edgemt: Cli, causal: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    record = trained(edgemt, causal if kind == "causal" else CHECKPOINT, tmp_path)
    assert record["steps"] == 4 and set(record["dev_scores"]) == {"clinical zh-en", "clinical en-zh"}  # type: ignore
