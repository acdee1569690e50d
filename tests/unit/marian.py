"""Small real Marian checkpoints for tests: random weights, trained SentencePiece models, real sentences."""

from __future__ import annotations

import csv
import gzip
import io
import json
from functools import cache
from pathlib import Path

import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel

from edgemt.bundle import open_bundle
from edgemt.export.bundles import write_bundle
from edgemt.export.checkpoints.read import read_checkpoint
from edgemt.export.graphs.graphset import Canonical
from edgemt.export.graphs.marian import build
from edgemt.export.languages import languages
from edgemt.export.targets import Calibrated, Ranges, target
from edgemt.runtimes import open_program
from edgemt.runtimes.protocol import Program

CORPUS = Path(__file__).parents[2] / "examples" / "medical-zh-en" / "data" / "clinical.tsv.gz"
LANGUAGE_TOKENS = (">>zh<<", ">>en<<")


@cache
def sentences(count: int = 120) -> tuple[tuple[str, str], ...]:
    """(Chinese, English) pairs of the clinical corpus."""
    with gzip.open(CORPUS, "rt", encoding="utf-8", newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return tuple((line[3], line[4]) for line, _ in zip(lines, range(count + 1), strict=False))[1:]


@cache
def pieces(side: str, size: int) -> tuple[bytes, tuple[str, ...]]:
    """A SentencePiece model over one side ("zh", "en") or both ("joint"), and its pieces."""
    column = {"zh": [0], "en": [1], "joint": [0, 1]}[side]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([pair[i] for pair in sentences() for i in column]),
        model_writer=buffer,
        vocab_size=size,
        character_coverage=0.98,
        eos_id=0,
        unk_id=1,
        bos_id=-1,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    return buffer.getvalue(), tuple(model.id_to_piece(i) for i in range(model.get_piece_size()))


def student(directory: Path, **changes: object) -> Path:
    """Like the shipped model: one joint vocabulary, both directions, relu, post-norm, pad 2."""
    model, known = pieces("joint", 700)
    vocab = ["</s>", "<unk>", "<pad>", *LANGUAGE_TOKENS, *known[2:]]
    return _write(directory, {"source": model, "target": model}, vocab, {"pad_token_id": 2, **changes}, {})


def opus(directory: Path, **changes: object) -> Path:
    """Like OPUS-MT zh-en: two SentencePiece models, a vocabulary in an order of its own, swish, pad last."""
    (source, zh), (target, en) = pieces("zh", 500), pieces("en", 300)
    body = sorted({*zh[2:], *en[2:], ">>eng<<", ">>zho<<"}, key=lambda piece: (len(piece), piece))
    vocab = ["</s>", "<unk>", *body, "<pad>"]
    config = {
        "pad_token_id": len(vocab) - 1,
        "activation_function": "swish",
        "bad_words_ids": [[len(vocab) - 1]],
    }
    tokenizer = {"source_lang": "zho", "target_lang": "eng"}
    return _write(directory, {"source": source, "target": target}, vocab, {**config, **changes}, tokenizer)


def _write(
    directory: Path, models: dict[str, bytes], vocab: list[str], changes: dict, tokenizer: dict
) -> Path:
    settings = {
        "vocab_size": len(vocab),
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "activation_function": "relu",
        "max_position_embeddings": 128,
        "scale_embedding": True,
        "eos_token_id": 0,
        "forced_eos_token_id": None,
        "init_std": 0.3,
    }
    settings |= changes
    settings.setdefault("decoder_start_token_id", settings["pad_token_id"])
    torch.manual_seed(1)
    model = MarianMTModel(MarianConfig(**settings)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at the start: any mistake with them would go unseen
            torch.nn.init.normal_(parameter, std=0.3)
    if settings.get("share_encoder_decoder_embeddings", True):
        model.final_logits_bias.normal_()
    model.save_pretrained(directory)
    for side, content in models.items():
        (directory / f"{side}.spm").write_bytes(content)
    ids = {piece: i for i, piece in enumerate(vocab)}
    (directory / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    write_rows(directory)
    return directory


def write_rows(directory: Path, count: int = 24) -> None:
    """calibration.tsv and heldout.tsv, in both directions."""
    lines = ["source_lang\ttarget_lang\tsource\ttarget"]
    for zh, en in sentences()[:count]:
        lines += [f"zh\ten\t{zh}\t{en}", f"en\tzh\t{en}\t{zh}"]
    (directory / "calibration.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / "heldout.tsv").write_text("\n".join(lines[:17]) + "\n", encoding="utf-8")


def canonical(checkpoint: Path) -> Canonical:
    read = read_checkpoint(checkpoint)
    return build(read, languages(read)[1])


def bundle(checkpoint: Path, directory: Path, precision: str = "fp32", ranges: Ranges | None = None) -> Path:
    """A bundle of the checkpoint, without the pipeline around it."""
    read = read_checkpoint(checkpoint)
    pairs, prefixes = languages(read)
    graphs = build(read, prefixes)
    lowered = target("onnxruntime").lower(graphs, precision, Calibrated(ranges or {}))
    directory.mkdir()
    write_bundle(
        directory,
        read,
        graphs,
        lowered.graphs,
        name="tiny",
        target="onnxruntime",
        precision=precision,
        layers=lowered.layers,
        languages=pairs,
    )
    return directory


def program(directory: Path) -> Program:
    opened = open_bundle(directory)
    return open_program(opened.directory, opened.manifest)
