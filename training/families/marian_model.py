"""The shape of a Marian model: of a new one, or as a checkpoint has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, MarianConfig, MarianMTModel

from edgemt.errors import EdgemtError, UsageError
from edgemt.export.checkpoints.facts import read_json
from edgemt.tokenizer import Tokenizer
from edgemt.training.config import Config, Model

# Keys of [model] and what a checkpoint's config.json calls them.
SHAPE = {
    "d_model": "d_model",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "heads": "encoder_attention_heads",
    "ffn": "encoder_ffn_dim",
    "max_positions": "max_position_embeddings",
}


def new_model(shape: Model, tokenizer: Tokenizer, attention: str) -> MarianMTModel:
    """A student with random weights, as transformers initialises them."""
    end, pad, size = tokenizer.ids["</s>"], tokenizer.ids["<pad>"], len(tokenizer.ids)
    config = MarianConfig(
        vocab_size=size,
        decoder_vocab_size=size,
        d_model=shape.d_model,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=shape.ffn,
        decoder_ffn_dim=shape.ffn,
        activation_function="relu",
        dropout=shape.dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        max_position_embeddings=shape.max_positions,
        scale_embedding=True,
        share_encoder_decoder_embeddings=True,
        tie_word_embeddings=True,
        static_position_embeddings=True,
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=None,
        decoder_start_token_id=pad,
        forced_eos_token_id=end,
        attn_implementation=attention,
    )
    model = MarianMTModel(config)
    model.generation_config = GenerationConfig(
        pad_token_id=pad,
        eos_token_id=end,
        decoder_start_token_id=pad,
        bad_words_ids=[[token] for token in sorted(tokenizer.control - {end})],
        max_length=shape.max_positions,
        num_beams=1,
    )
    return model


def model_like(folder: Path, config: Config) -> MarianMTModel:
    """A model of the shape that a checkpoint folder's config.json has; [model] must not say otherwise."""
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} has no config.json: put the one of these weights there")
    values = read_json(folder / "config.json")
    if values.get("model_type") != "marian":
        raise UsageError(
            f'{folder} is of the kind {values.get("model_type")}, not marian: set model.family = "causal" '
            "if it is a decoder alone, or start from another checkpoint"
        )
    found = MarianConfig.from_dict(values, attn_implementation=attention(config))
    asked: dict[str, Any] = {name: getattr(config.model, name) for name in config.model.model_fields_set}
    for name, theirs in SHAPE.items():
        if name in asked and asked[name] != getattr(found, theirs):
            raise UsageError(
                f"model.{name} = {asked[name]}, but {folder} has {getattr(found, theirs)}: "
                "leave it out of the config, or start from another checkpoint"
            )
    if "dropout" in asked:
        found.dropout = asked["dropout"]
    if found.vocab_size != found.decoder_vocab_size:
        raise EdgemtError(
            f"{folder} has a vocabulary for each side, which edgemt does not train; use a joint one"
        )
    model = MarianMTModel(found)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def attention(config: Config) -> str:
    """On a CPU `eager` is the faster (docs/training.md)."""
    return "eager" if config.device == "cpu" else "sdpa"
