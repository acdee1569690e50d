"""Marian: translation by encoder and decoder, from random weights or from any Marian checkpoint (OPUS-MT)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional
from transformers import MarianConfig, MarianMTModel

from edgemt.errors import UsageError
from edgemt.export.checkpoints.read import read_checkpoint
from edgemt.export.languages import languages
from edgemt.tokenizer import Tokenizer
from edgemt.training.config import Config, Data
from edgemt.training.data import Pairs, directions, padded, used_rows
from edgemt.training.families import Origin
from edgemt.training.families.marian_model import attention, model_like, new_model
from edgemt.training.vocabulary import TOKENIZER_FILES
from edgemt.training.weights import load_weights, unshared

EMBEDDING = "embedding"  # the only tensor of a file that is a start for the embedding alone


class MarianBatch(NamedTuple):
    """Token ids, int64 [sentences, length], padded on the right; the labels end in the end token."""

    source: Tensor
    mask: Tensor  # 1 where `source` is a token
    decoder_input: Tensor
    labels: Tensor
    real: Tensor  # bool: where `labels` is a token
    target_tokens: int

    @property
    def sentences(self) -> int:
        return len(self.source)

    @property
    def tokens(self) -> int:
        return max(self.source.numel(), self.labels.numel())

    def to(self, device: str) -> MarianBatch:
        source, mask, decoder_input, labels, real = (part.to(device) for part in self[:5])
        return MarianBatch(source, mask, decoder_input, labels, real, self.target_tokens)


class MarianExamples:
    """Encoded pairs, once for each direction: a source is prefix, pieces, end; a target pieces, end."""

    def __init__(
        self,
        sources: list[np.ndarray],
        targets: list[np.ndarray],
        weights: np.ndarray,
        config: Any,  # MarianConfig
    ) -> None:
        self.sources, self.targets = sources, targets
        self.weights = weights
        self.target_lengths = np.array([len(ids) for ids in targets])
        self.lengths = np.stack([[len(ids) for ids in sources], self.target_lengths], axis=1)
        self.pad: int = config.pad_token_id
        self.start: int = config.decoder_start_token_id

    def batch(self, chosen: np.ndarray) -> MarianBatch:
        source = padded([self.sources[i].tolist() for i in chosen], self.pad)
        labels = padded([self.targets[i].tolist() for i in chosen], self.pad)
        source_lengths, target_lengths = torch.from_numpy(self.lengths[chosen].T)
        mask = torch.arange(source.shape[1]) < source_lengths[:, None]
        real = torch.arange(labels.shape[1]) < target_lengths[:, None]
        decoder_input = labels.roll(1, dims=1)
        decoder_input[:, 0] = self.start
        return MarianBatch(source, mask.long(), decoder_input, labels, real, int(target_lengths.sum()))


class Marian:
    """The family: a MarianMTModel, its tokenizer, and the prefix ids of each direction ("zh-en")."""

    def __init__(
        self, model: MarianMTModel, tokenizer_folder: Path, asked: list[str], label_smoothing: float
    ) -> None:
        self.model = model
        self.folder = tokenizer_folder
        self.tokenizer = Tokenizer(tokenizer_folder)
        self.prefixes = prefixes(tokenizer_folder, self.tokenizer.ids, asked)
        self.label_smoothing = label_smoothing
        config: Any = model.config
        self.end: int = config.eos_token_id
        self.pad: int = config.pad_token_id

    def examples(self, pairs: Pairs, settings: Data, seed: int) -> MarianExamples:
        used = used_rows(pairs, settings.weights)
        weights = np.array([settings.weights.get(pairs.corpus[i], 1.0) for i in used])
        sources: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        shown: list[np.ndarray] = []
        for side in directions(pairs, settings.directions):
            prefix = self.prefix(pairs.languages[side], pairs.languages[1 - side])
            ids = [self.tokenizer.encode(pairs.texts[side][i]) for i in used]
            answers = [self.tokenizer.encode_target(pairs.texts[1 - side][i]) for i in used]
            room = settings.max_length - 1
            kept = [k for k in range(len(used)) if 0 < len(ids[k]) < room and 0 < len(answers[k]) < room]
            sources += [np.array([*prefix, *ids[k], self.end], dtype=np.int32) for k in kept]
            targets += [np.array([*answers[k], self.end], dtype=np.int32) for k in kept]
            shown.append(weights[kept])
        if not sources:
            raise UsageError(
                "no training pairs: every one has a side longer than data.max_length "
                f"({settings.max_length}) or a corpus without weight"
            )
        return MarianExamples(sources, targets, np.concatenate(shown), self.model.config)

    def prefix(self, source: str, target: str) -> list[int]:
        """The ids before a source that ask for this direction."""
        if f"{source}-{target}" not in self.prefixes:
            known = ", ".join(f'"{direction}"' for direction in self.prefixes)
            raise UsageError(
                f"{self.folder} translates {known}, not {source}-{target}: set data.directions = [{known}], "
                "or start from another checkpoint"
            )
        return self.prefixes[f"{source}-{target}"]

    def summed_loss(self, model: Any, batch: MarianBatch) -> Tensor:
        """The head sees no padding at all: only labels that count are multiplied with the vocabulary."""
        hidden = model.model(
            input_ids=batch.source,
            attention_mask=batch.mask,
            decoder_input_ids=batch.decoder_input,
            use_cache=False,
        ).last_hidden_state
        logits = model.lm_head(hidden[batch.real]) + model.final_logits_bias
        return functional.cross_entropy(
            logits.float(), batch.labels[batch.real], label_smoothing=self.label_smoothing, reduction="sum"
        )

    def translate(self, texts: list[str], source: str, target: str, batch_size: int = 50) -> list[str]:
        """Greedy translations in batches of like length; a source is cut at what the model has places for."""
        prefix = self.prefix(source, target)
        room = min(250, self.model.config.max_position_embeddings - len(prefix) - 1)
        sources = [[*prefix, *self.tokenizer.encode(text)[:room], self.end] for text in texts]
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        translations = [""] * len(texts)
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            ids = padded([sources[i] for i in chosen], self.pad).to(self.model.device)
            longest = min(self.model.config.max_position_embeddings - 1, 2 * ids.shape[1] + 20)
            with torch.inference_mode():
                output = self.model.generate(
                    ids,
                    attention_mask=(ids != self.pad).long(),
                    max_length=longest,
                    num_beams=1,
                    do_sample=False,
                )
            for i, answer in zip(chosen, output[:, 1:].tolist(), strict=True):
                length = answer.index(self.end) if self.end in answer else len(answer)
                translations[i] = self.tokenizer.decode(answer[:length])
        return translations

    def weights(self) -> dict[str, Tensor]:
        computed = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
        return {name: tensor for name, tensor in unshared(self.model).items() if name not in computed}

    def write_files(self, directory: Path) -> None:
        generation = self.model.generation_config
        assert generation is not None
        generation.save_pretrained(directory)
        values = {**self.model.config.to_dict(), "architectures": ["MarianMTModel"], "dtype": "float32"}
        # What old checkpoints have in config.json and transformers now wants in generation_config.json alone.
        moved = {name for name in generation.to_dict() if not name.endswith("_token_id")}
        config = MarianConfig.from_dict({name: v for name, v in values.items() if name not in moved})
        config.save_pretrained(directory)
        for name in TOKENIZER_FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, directory / name)


def make(config: Config, origin: Origin) -> Marian:
    """From a resumed run's folder, a checkpoint, or the data folder's tokenizer/ and random weights."""
    asked = config.data.directions
    if origin.saved:
        return Marian(model_like(origin.saved, config), origin.saved, asked, config.label_smoothing)
    if origin.init and not is_embedding(origin.init):
        checkpoint = read_checkpoint(origin.init)
        model = model_like(checkpoint.directory, config)
        load_weights(model, checkpoint.tensors, origin.init)
        return Marian(model, checkpoint.directory, asked, config.label_smoothing)
    if origin.data is None:
        raise UsageError(
            "a new run without --init needs --data: the folder with train.tsv, dev.tsv and tokenizer/"
        )
    folder = origin.data / "tokenizer"
    if not (folder / "source.spm").is_file():
        raise UsageError(
            f"no vocabulary at {folder}: give a checkpoint with --init, or train a vocabulary first "
            "(see examples/medical-zh-en)"
        )
    model = new_model(config.model, Tokenizer(folder), attention(config))
    if origin.init:
        start_from_embedding(model, origin.init)
    return Marian(model, folder, asked, config.label_smoothing)


def prefixes(folder: Path, vocab: dict[str, int], asked: list[str]) -> dict[str, list[int]]:
    """The ids before the source of each direction: what the folder says, as `edgemt export` reads it."""
    try:
        return languages(Spoken(folder, vocab))[1]
    except UsageError:
        if not asked:
            raise UsageError(f"{folder} does not say what it translates: set data.directions") from None
        return languages(Spoken(folder, vocab), ",".join(asked))[1]


class Spoken(NamedTuple):
    """As much of a checkpoint as says its languages."""

    directory: Path
    vocab: dict[str, int]


def is_embedding(file: Path) -> bool:
    """Is this a safetensors file with nothing but an embedding?"""
    if not (file.is_file() and file.suffix == ".safetensors"):
        return False
    with safe_open(file, "pt") as tensors:
        return list(tensors.keys()) == [EMBEDDING]


def start_from_embedding(model: MarianMTModel, file: Path) -> None:
    """Copy `embedding` [vocabulary, d_model] of a safetensors file into the shared embedding."""
    with safe_open(file, "pt") as tensors:
        embedding = tensors.get_tensor(EMBEDDING)
    shared = model.get_parameter("model.shared.weight")
    if embedding.shape != shared.shape:
        raise UsageError(
            f"{file}: the embedding is {list(embedding.shape)}, the model's {list(shared.shape)}"
        )
    with torch.no_grad():
        shared.copy_(embedding)
