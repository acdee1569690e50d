"""Contenders do the same work with the same weights; a run of benchmarks/peers.py from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from marian import student
from support import CHECKPOINT, ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.contenders import ctranslate2 as contender
from benchmarks.contenders import prepare as preparing
from benchmarks.contenders.registry import Peer
from benchmarks.contenders.serve import Text, limit

NEVER = [[1], [2], [3], [4]]
TEXT = (
    "1. 手术应在无菌环境下进行。\n\n"
    "请每天吃两片药，饭后服用；"
    "如果头疼、恶心、呕吐、发烧，或者伤口红肿、流脓、疼痛，请尽快回来复诊。 BP 120/80"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Like the shipped model: <pad>, in the middle of the vocabulary, has an embedding that is not zero."""
    import torch
    from transformers import MarianMTModel

    directory = student(tmp_path_factory.mktemp("student") / "checkpoint", bad_words_ids=NEVER)
    model = MarianMTModel.from_pretrained(directory)
    with torch.no_grad():
        model.model.shared.weight[2].normal_(std=0.3)
    model.save_pretrained(directory)
    return directory


def peers(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True)


def test_ctranslate2_gets_every_row_where_it_was(checkpoint):
    pytest.importorskip("ctranslate2")
    from transformers import MarianMTModel

    model = MarianMTModel.from_pretrained(checkpoint)
    table, bias = model.model.shared.weight, model.final_logits_bias[0]
    spec = contender.specification(checkpoint)
    decoder = spec.decoder
    for found in (spec.encoder.embeddings[0].weight, decoder.embeddings.weight, decoder.projection.weight):
        assert found.shape == table.shape and (found == table).all()
    assert (decoder.projection.bias == bias).all() and bias.any()
    ids = json.loads((checkpoint / "vocab.json").read_text(encoding="utf-8"))
    assert {token: row for row, token in enumerate(contender.vocabulary(checkpoint))} == ids


def test_the_stock_converter_would_drop_a_word(checkpoint):
    """Why there is one of our own; if this fails, CTranslate2 has changed and ours may go."""
    converters = pytest.importorskip("ctranslate2.converters.transformers")
    from transformers import MarianMTModel

    spec = converters.MarianMTLoader().get_model_spec(MarianMTModel.from_pretrained(checkpoint))
    tokens = contender.vocabulary(checkpoint)
    assert spec.encoder.embeddings[0].weight.shape[0] == len(tokens) - 1
    assert tokens[-1] != "<pad>"
    assert spec.decoder.start_from_zero_embedding


def test_ctranslate2_translates_as_torch_does(checkpoint, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    import torch
    from transformers import MarianMTModel

    contender.prepare(checkpoint, tmp_path / "model", None)
    facts = json.loads((tmp_path / "model" / "edgemt.json").read_text(encoding="utf-8"))
    translator = ctranslate2.Translator(str(tmp_path / "model"), intra_threads=1)
    model, text = MarianMTModel.from_pretrained(checkpoint), Text(tmp_path / "model", None)
    tokens = contender.vocabulary(checkpoint)
    ids = {token: number for number, token in enumerate(tokens)}
    for source, target_lang in (("我头疼，发烧。", "en"), ("She is allergic to penicillin.", "zh")):
        pieces = text.tokens(source, target_lang)
        most = limit(pieces, facts["positions"])
        (found,) = translator.translate_batch(
            [pieces], beam_size=1, max_decoding_length=most, suppress_sequences=facts["never"]
        )
        with torch.inference_mode():
            expected = model.generate(
                torch.tensor([[ids.get(piece, ids["<unk>"]) for piece in pieces]]),
                num_beams=1,
                do_sample=False,
                max_length=None,
                max_new_tokens=most,
                bad_words_ids=NEVER,
            )
        answer = [token for token in expected[0, 1:].tolist() if token != 0]
        assert len(answer) > 2
        assert [ids[piece] for piece in found.hypotheses[0]] == answer


def test_every_engine_gets_the_sentences_that_edgemt_translates(default_bundle):
    import edgemt

    translator = edgemt.load(default_bundle)
    text = Text(CHECKPOINT, translator.bundle.manifest.generation["max_source_tokens"])
    seen: list[list[str]] = []

    def model(tokens: list[str]) -> list[str]:
        seen.append(tokens)
        return ["▁x"]

    answer = text.translate(TEXT, "zh", "en", model)
    segments = [s for s in translator.segments(TEXT, source_lang="zh", target_lang="en") if s.translated]
    assert len(segments) > 2
    assert seen == [text.tokens(segment.source, "en") for segment in segments]
    assert [tokens[0] for tokens in seen] == [">>en<<"] * len(seen)
    assert answer.count("x") == len(segments)
    assert answer.count("\n") == 2 and answer.endswith("BP 120/80")
    assert text.translate(TEXT, "zh", "en", model) == answer
    whole = Text(CHECKPOINT, None)
    seen.clear()
    assert whole.translate(TEXT, "zh", "en", model) == "x"
    assert len(seen) == 1


def test_what_is_not_installed_is_left_out_by_name(monkeypatch, tmp_path):
    absent = Peer("Another 1", "another", (), ("no_such_engine.core", "json"), "pip install another", ())
    monkeypatch.setattr(preparing, "PEERS", (*preparing.PEERS, absent))
    said: list[str] = []
    shipped = ["edgemt INT8 dynamic", "edgemt INT8 static", "edgemt FP32"]
    entrants, skipped = preparing.prepare([shipped_peer(shipped), "Another"], tmp_path, said.append)
    assert [entrant.label for entrant in entrants] == [f"{shipped_peer(shipped)} (shipped)"]
    assert skipped == [
        {"name": "Another 1", "missing": "no_such_engine.core", "install": "pip install another"}
    ]
    (line,) = said
    assert "Another 1" in line and "pip install another" in line
    assert not any(tmp_path.iterdir())


def shipped_peer(names: list[str]) -> str:
    """The name of the contender that the shipped bundle stands in for."""
    from edgemt.bundle import open_bundle

    precision = open_bundle(None).manifest.precision
    (name,) = (peer.name for peer in preparing.PEERS if peer.precision == precision)
    assert name in names
    return name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--only", "Moses"), "no contender is left"),
        (("--page", "/no/such/folder/page.md"), "cannot write --page"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments, said, tmp_path):
    done = peers("--work", tmp_path, *arguments)
    assert done.returncode == 2
    message = done.stderr.decode()
    assert message.startswith("peers: ") and message.count("\n") == 1 and said in message


@pytest.mark.slow
def test_a_short_run(tmp_path):
    files = ("--json", tmp_path / "run.json", "--page", tmp_path / "page.md", "--work", tmp_path / "work")
    short = ("--texts", "1", "--rounds", "2", "--quality", "10", "--starts", "1")
    chosen = ("--only", "edgemt INT8 dynamic", "--only", "edgemt FP32", "--only", "CTranslate2")
    done = peers(*files, *short, *chosen)
    assert done.returncode == 0, done.stderr.decode()
    data = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    labels = [contender["label"] for contender in data["contenders"]]
    assert labels[0].startswith("edgemt") and "edgemt FP32" in labels
    assert len(labels) + len(data["skipped"]) == 4
    assert [search["search"] for search in data["searches"]] == ["greedy", "beam 4"]
    for search in data["searches"]:
        rows = search["run"]["bundles"]
        assert [row["label"] for row in rows] == labels
        for row in rows:
            assert [bucket["tokens"] for bucket in row["buckets"]] == [5, 10, 15, 25, 40, 60]
            assert len(row["texts"]) == 12
            assert row["cold_start_s"] > 0 and row["peak_rss_bytes"] > 10_000_000
        quality = {row["label"]: row for row in search["quality"]}
        assert quality["edgemt FP32"]["same_as_fp32"] == 1
        if "CTranslate2 FP32" in quality:
            assert quality["CTranslate2 FP32"]["same_as_fp32"] >= 0.9
        assert all(row["directions"]["zh-en"]["bleu"] > 3 for row in quality.values())
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert all(label in page for label in labels)
    assert str(Path.home()) not in page.replace(data["command"], "")
    again = peers(*files, *short, *chosen, "--prepare")
    assert again.returncode == 0 and "preparing" not in again.stderr.decode()
