"""What training sees: no held-out row, Chinese marks as they are, and a configuration without typos."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import sentencepiece
from training_fixtures import tiny_config, write_tiny_data

from edgemt.errors import UsageError
from edgemt.tokenizer import Tokenizer
from edgemt.training.config import Data, load_config
from edgemt.training.data import Batches, absent, read_pairs
from edgemt.training.families import Origin, make_family
from edgemt.training.families.marian import MarianBatch
from edgemt.training.vocabulary import EOS, PAD, UNK

RECIPE = Path(__file__).parents[2] / "examples/medical-zh-en"


@pytest.fixture(scope="module")
def corpora() -> ModuleType:
    spec = importlib.util.spec_from_file_location("corpora", RECIPE / "corpora.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["corpora"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("training") / "data")


def test_no_held_out_row_reaches_training(corpora: ModuleType, tmp_path: Path) -> None:
    held = [row.pair for row in corpora.clinical() if row.split != "train"]
    hidden = held[7]
    parallel = tmp_path / "parallel.tsv.gz"
    rows = [
        ("train", "docs", "x", hidden.zh, "Something else."),  # shares a side with a held-out clinical row
        ("train", "docs", "x", "别的话。", hidden.en.upper() + " !"),  # … but for case and punctuation
        ("train", "docs", "x", "好的句子。", "A good sentence."),
        ("test", "docs", "x", "秘密的句子。", "A secret sentence."),
        ("train", "docs", "x", "公开。", "A secret sentence"),
    ]
    with gzip.open(parallel, "wt", encoding="utf-8") as file:
        file.writelines("\t".join(row) + "\n" for row in rows)
    sources = [*corpora.terms(), *corpora.parallel(parallel), *corpora.clinical()]
    train, dev, dropped = corpora.split_without_leaks(sources)
    held_zh = {corpora.comparable(pair.zh) for pair in held} | {corpora.comparable("秘密的句子。")}
    held_en = {corpora.comparable(pair.en) for pair in held} | {corpora.comparable("A secret sentence.")}
    assert not [
        p for p in train if corpora.comparable(p.zh) in held_zh or corpora.comparable(p.en) in held_en
    ]
    assert [p.zh for p in train if p.corpus == "docs"] == ["好的句子。"]
    assert dropped >= 3 and len(train) > 20_000
    assert {pair.corpus for pair in dev} == {"clinical"} and 400 < len(dev) < 600


def test_normalisation_folds_letters_and_keeps_chinese_marks(data: Path) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(data / "tokenizer/source.spm"))
    assert model.normalize("，：；！？（）…").lstrip("▁") == "，：；！？（）…"
    assert model.normalize("ＡＢｃ１２３％").lstrip("▁") == "ABc123%"
    assert model.normalize("体温\u3000３８.５℃，\u200b每日\t３次。") == "▁体温▁38.5℃，每日▁3次。"
    assert model.normalize("10⁹/L 1½ ① ㎎").lstrip("▁") == "10⁹/L▁1½▁①▁mg"  # not 109, not 11/2


def test_special_tokens(data: Path) -> None:
    tokenizer = Tokenizer(data / "tokenizer")
    assert [tokenizer.pieces[i] for i in range(5)] == ["</s>", "<unk>", "<pad>", ">>zh<<", ">>en<<"]
    assert (EOS, UNK, PAD) == (0, 1, 2)
    ids = tokenizer.encode(">>en<< </s> <pad> 你好")
    assert min(ids) > 4  # text cannot spell a control token, nor anything unknown
    assert tokenizer.decode(tokenizer.encode("37.5 mg，𠮷")) == "37.5 mg，𠮷"


def test_an_epoch_shows_each_pair_in_both_directions_by_weight(data: Path) -> None:
    family = make_family(tiny_config(1), Origin(data, None))
    pairs = read_pairs(data / "train.tsv")
    weights = {"clinical": 1.5, "docs": 1.0}
    assert absent(pairs, weights) == ["docs"]
    examples = family.examples(pairs, Data(weights=weights), seed=1)
    batches = Batches(examples, batch_tokens=150, seed=1)
    first, again, next_one = batches.order(0), batches.order(0), batches.order(1)
    assert all(map(np.array_equal, first, again))
    assert len(first) != len(next_one) or not all(map(np.array_equal, first, next_one))
    shown = np.bincount(np.concatenate(first))
    assert len(shown) == len(examples.weights) == 2 * len(pairs.corpus)
    assert shown.min() == 1 and shown.max() == 2 and 1.4 < shown.mean() < 1.6
    batch = examples.batch(first[0])
    assert isinstance(batch, MarianBatch)
    assert batch.tokens == max(batch.source.numel(), batch.labels.numel()) <= 150
    assert set(batch.source[:, 0].tolist()) <= {3, 4}
    assert (batch.decoder_input[:, 1:] == batch.labels[:, :-1]).all()
    assert (batch.decoder_input[:, 0] == PAD).all()
    assert batch.target_tokens == int((batch.labels != PAD).sum()) == examples.target_lengths[first[0]].sum()


def test_batches_go_on_at_any_place(data: Path) -> None:
    family = make_family(tiny_config(1), Origin(data, None))
    examples = family.examples(read_pairs(data / "train.tsv"), Data(), seed=1)
    whole = Batches(examples, batch_tokens=1000, seed=1)
    expected = [batch for _ in range(9) for batch in whole.take(7)]
    assert whole.epoch > 1  # a step may lie across the end of an epoch
    part, seen = Batches(examples, batch_tokens=1000, seed=1), []
    for _ in range(9):
        seen += part.take(7)
        place = part.epoch, part.position
        part = Batches(examples, batch_tokens=1000, seed=1)
        part.epoch, part.position = place
    assert all(map(np.array_equal, seen, expected))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer = { rte = 1e-3 }", "unknown key optimizer.rte; the nearest is optimizer.rate"),
        ("presicion = 'bf16'", "unknown key presicion; the nearest is precision"),
        ("precision = 'int8'", "precision: Input should be 'fp32', 'bf16', 'fp16-o1' or 'fp16-pure'"),
        ("precision = ", "is not TOML"),
    ],
)
def test_a_wrong_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "train.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_config(file)


def test_the_committed_config_is_valid() -> None:
    assert load_config(RECIPE / "train.toml").precision == "bf16"
