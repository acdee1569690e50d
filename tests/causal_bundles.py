"""Sealed bundles of the tiny decoder-only models, with a real byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from causal_models import CASES, SIZES, checkpoint_of
from transformers import AutoConfig, AutoModelForCausalLM

from edgemt.bundle import seal
from edgemt.export.chat import read_chat
from edgemt.export.graphs import causal
from edgemt.export.graphs.graphset import Canonical
from edgemt.export.targets import Calibrated, Lowered, target
from edgemt.export.targets.weight_only import BLOCK
from edgemt.manifest import Graph, Manifest
from edgemt.training.chat_tokenizer import train_chat_tokenizer

SENTENCES = [
    "手术应在无菌环境下进行。",
    "The patient was given 5 mg of morphine at 10:30.",
    "请在饭后服用本品，每日三次，每次两片。",
    "Take two tablets three times a day after meals.",
    "血压为120/80毫米汞柱。",
    "He did well after the surgery.",
]


def write_bundle(
    directory: Path,
    kind: str = "qwen2",
    precision: str = "fp32",
    seed: int = 0,
    size: int = 700,
    sentences: list[str] = SENTENCES,
    block: int = BLOCK,
    **sizes: Any,
) -> Path:
    """A model of `kind` with random weights; its vocabulary has up to `size` tokens of `sentences`.

    INT4 has blocks of `block`; `sizes` go into the model's configuration.
    """
    directory.mkdir(parents=True)
    train_chat_tokenizer(sentences, directory / "tokenizer", size)
    chat = read_chat(directory / "tokenizer")
    (directory / "tokenizer.json").write_text(chat.byte_pairs, encoding="utf-8")
    torch.manual_seed(seed)
    config = {**SIZES, **CASES[kind], **sizes, "vocab_size": max(chat.control) + 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)).eval()
    canonical = causal.build(checkpoint_of(model), chat.after[-1], chat.end, chat.control)
    lowered = target("onnxruntime").lower(canonical, precision, Calibrated(block=block))
    manifest = write_graphs(
        directory,
        canonical,
        lowered,
        precision,
        tokenizer={"bpe": "tokenizer.json"},
        chat={"before": chat.before, "after": chat.after},
        generation={"beam": 1, "max_length_factor": 2.0, "max_length_extra": 16},
    )
    seal(directory, manifest)
    return directory


def write_graphs(
    directory: Path, canonical: Canonical, lowered: Lowered, precision: str = "fp32", **more: Any
) -> Manifest:
    """Write the graphs into the folder; returns a manifest of them, not sealed. `more`: its other fields."""
    files, graphs = lowered.graphs.write(directory), lowered.graphs
    empty = {name: {} for name in ("tokenizer", "generation", "features", "provenance", "gate")}
    return Manifest(
        name=directory.name,
        family="causal",
        languages=[["zh", "en"], ["en", "zh"]],
        target="onnxruntime",
        precision=precision,
        graphs={role: Graph(file, graphs.inputs(role), graphs.outputs(role)) for role, file in files.items()},
        states=canonical.states,
        model=canonical.model,
        licence="",
        **{**empty, **more},
    )
