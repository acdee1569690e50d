"""Causal: a decoder-only model that answers HY-MT's prompts (HunYuanDenseV1, Qwen2, Llama)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from edgemt.errors import UsageError
from edgemt.export.checkpoints.read import read_weights
from edgemt.export.checkpoints.tensors import Loaded
from edgemt.prompts import prompt
from edgemt.training.chat_tokenizer import Chat, read_tokenizer
from edgemt.training.config import Causal, Config, Data
from edgemt.training.data import Pairs, directions, padded, used_rows
from edgemt.training.families import Origin
from edgemt.training.instructions import instructions, read_terms
from edgemt.training.weights import load_weights, unshared

# Keys of [causal] and what every kind's config.json calls them.
SHAPE = {
    "kind": "model_type",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "max_positions": "max_position_embeddings",
    "tie": "tie_word_embeddings",
}


def hunyuan(shape: Causal) -> dict[str, Any]:
    """What HY-MT1.5's config.json says beyond its shape; the RoPE base is theta * alpha^(d / (d - 2))."""
    scaling = {"type": "dynamic", "alpha": shape.rope_alpha, "factor": 1.0}
    return {
        "attention_head_dim": shape.head_dim,
        "use_qk_norm": True,
        "rope_scaling": scaling if shape.rope_alpha else None,
    }


# What each kind's configuration needs beside its shape.
KINDS: dict[str, Callable[[Causal], dict[str, Any]]] = {
    "hunyuan_v1_dense": hunyuan,
    "qwen2": lambda shape: {},
    "llama": lambda shape: {},
}
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
)


class CausalBatch(NamedTuple):
    """Prompts with their answers, int64 [sentences, length], padded on the right.

    No mask is needed: padding comes after all that a token may look at, and predicts nothing that counts.
    """

    ids: Tensor
    predicts: Tensor  # bool [sentences, length]: the next token belongs to the answer
    target_tokens: int

    @property
    def sentences(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return self.ids.numel()

    @property
    def labels(self) -> Tensor:
        """The next tokens where they belong to an answer, [target_tokens], row by row."""
        return self.ids[:, 1:][self.predicts[:, :-1]]

    def to(self, device: str) -> CausalBatch:
        return CausalBatch(self.ids.to(device), self.predicts.to(device), self.target_tokens)


class CausalExamples:
    """Encoded instructions: the prompt, the answer, the token that ends it."""

    def __init__(
        self, ids: list[np.ndarray], target_lengths: np.ndarray, weights: np.ndarray, pad: int
    ) -> None:
        self.ids = ids
        self.target_lengths = target_lengths
        self.weights = weights
        self.lengths = np.array([[len(row)] for row in ids])
        self.pad = pad

    def batch(self, chosen: np.ndarray) -> CausalBatch:
        ids = padded([self.ids[i].tolist() for i in chosen], self.pad)
        end = torch.from_numpy(self.lengths[chosen]) - 1  # of each row: its last token predicts nothing
        begin = end - torch.from_numpy(self.target_lengths[chosen])[:, None]
        place = torch.arange(ids.shape[1])
        return CausalBatch(ids, (begin <= place) & (place < end), int(self.target_lengths[chosen].sum()))


class CausalFamily:
    """The family: a model, and the folder of its tokenizer."""

    def __init__(self, model: PreTrainedModel, folder: Path, config: Config, data: Path | None) -> None:
        self.model = model
        self.folder = folder
        self.chat = Chat(read_tokenizer(folder), folder)
        self.config = config
        self.data = data

    def examples(self, pairs: Pairs, settings: Data, seed: int) -> CausalExamples:
        used = used_rows(pairs, settings.weights)
        sides = directions(pairs, settings.directions)
        lengths = [[len(ids) for ids in self.chat.plain(texts)] for texts in pairs.texts]
        short = [i for i in used if max(lengths[0][i], lengths[1][i]) < settings.max_length]
        terms = read_terms(self.data / "terms.tsv", pairs.languages) if self.data else None
        asked = list(instructions(pairs, short, sides, terms, self.config.causal.prompts, seed))
        prompts = self.chat.prompts([example.prompt for example in asked])
        answers = self.chat.answers([example.answer for example in asked])
        room = int(self.model.config.max_position_embeddings)
        kept = [k for k in range(len(asked)) if len(prompts[k]) + len(answers[k]) <= room]
        if not kept:
            raise UsageError(
                f"no training pairs: every one has a side longer than data.max_length "
                f"({settings.max_length}), is too long for the model, or of a corpus without weight"
            )
        return CausalExamples(
            [np.array(prompts[k] + answers[k], dtype=np.int32) for k in kept],
            np.array([len(answers[k]) for k in kept]),
            np.array([settings.weights.get(pairs.corpus[asked[k].row], 1.0) for k in kept]),
            self.chat.pad,
        )

    def summed_loss(self, model: nn.Module, batch: CausalBatch) -> Tensor:
        """The head sees only what predicts a token of an answer."""
        causal: Any = model
        hidden = causal.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        logits = causal.lm_head(hidden[batch.predicts])
        return functional.cross_entropy(
            logits.float(), batch.labels, label_smoothing=self.config.label_smoothing, reduction="sum"
        )

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        room = [2 * len(ids) + 20 for ids in self.chat.plain(texts)]
        return self.answer([prompt(text, source, target) for text in texts], room)

    def answer(self, prompts: list[str], room: list[int], batch_size: int = 25) -> list[str]:
        """Greedy answers of at most `room` tokens each, in batches of like length, padded on the left."""
        rows = self.chat.prompts(prompts)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        answers = [""] * len(rows)
        model: Any = self.model
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            width = max(len(rows[i]) for i in chosen)
            ids = torch.full((len(chosen), width), self.chat.pad)
            for place, i in enumerate(chosen):
                ids[place, width - len(rows[i]) :] = torch.tensor(rows[i])
            mask = torch.arange(width) >= width - torch.tensor([[len(rows[i])] for i in chosen])
            greedy = GenerationConfig(
                max_new_tokens=max(room[i] for i in chosen),
                do_sample=False,
                num_beams=1,
                eos_token_id=self.chat.end,
                pad_token_id=self.chat.pad,
            )
            with torch.inference_mode():
                output = model.generate(
                    ids.to(model.device),
                    attention_mask=mask.long().to(model.device),
                    generation_config=greedy,
                    use_model_defaults=False,  # the checkpoint's may sample
                )
            for i, row in zip(chosen, output[:, width:].tolist(), strict=True):
                answers[i] = self.chat.decode(row[: room[i]])
        return answers

    def weights(self) -> dict[str, Tensor]:
        return unshared(self.model)

    def write_files(self, directory: Path) -> None:
        config = type(self.model.config).from_dict({**self.model.config.to_dict(), "dtype": "float32"})
        config.architectures = [type(self.model).__name__]
        config.save_pretrained(directory)
        for name in FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, directory / name)
        if not (directory / "generation_config.json").is_file():
            ends = {"bos_token_id": config.bos_token_id, "eos_token_id": self.chat.end}
            GenerationConfig(**ends, pad_token_id=self.chat.pad).save_pretrained(directory)


def make(config: Config, origin: Origin) -> CausalFamily:
    """From a resumed run's folder, a checkpoint, or the data folder's tokenizer/ and random weights."""
    if origin.saved:
        return CausalFamily(model_like(origin.saved, config), origin.saved, config, origin.data)
    if origin.init:
        weights = read_weights(origin.init)
        model = model_like(weights.directory, config)
        load_weights(model, Loaded(weights.tensors), origin.init)
        return CausalFamily(model, weights.directory, config, origin.data)
    if origin.data is None:
        raise UsageError(
            "a new run without --init needs --data: the folder with train.tsv, dev.tsv and tokenizer/"
        )
    folder = origin.data / "tokenizer"
    return CausalFamily(model_of(new_config(config.causal, folder), config), folder, config, origin.data)


def new_config(shape: Causal, folder: Path) -> PretrainedConfig:
    tokenizer = read_tokenizer(folder)
    values = {theirs: getattr(shape, name) for name, theirs in SHAPE.items() if name != "kind"}
    values["vocab_size"] = shape.vocab_size or len(tokenizer)
    if values["vocab_size"] < len(tokenizer):
        raise UsageError(f"causal.vocab_size is {shape.vocab_size}, but {folder} has {len(tokenizer)} tokens")
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return AutoConfig.for_model(shape.kind, **values, **ends, **KINDS[shape.kind](shape))


def model_like(folder: Path, config: Config) -> PreTrainedModel:
    """A model of the shape that a checkpoint folder's config.json has; [causal] must not say otherwise."""
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} has no config.json: copy the checkpoint's")
    try:
        found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / 'config.json'} cannot be read ({error}); copy it again") from None
    if found.model_type not in KINDS:
        raise UsageError(f"{folder} is of the kind {found.model_type}; causal models are {', '.join(KINDS)}")
    shape = config.causal
    for name in sorted(shape.model_fields_set & set(SHAPE)):
        theirs = getattr(found, SHAPE[name], None)
        if getattr(shape, name) != theirs and (name, shape.vocab_size) != ("vocab_size", 0):
            raise UsageError(
                f"causal.{name} = {getattr(shape, name)}, but {folder} has {theirs}: "
                "leave it out of the config, or start from another checkpoint"
            )
    return model_of(found, config)


def model_of(found: PretrainedConfig, config: Config) -> PreTrainedModel:
    """A model in FP32 with random weights. On a CPU `eager` attention is the faster."""
    attention = "eager" if config.device == "cpu" else "sdpa"
    return AutoModelForCausalLM.from_config(found, dtype=torch.float32, attn_implementation=attention)
