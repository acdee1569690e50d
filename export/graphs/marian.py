"""Marian: Hugging Face's MarianMTModel, that is any OPUS-MT checkpoint and edgemt's own students."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.read import Checkpoint
from edgemt.export.checkpoints.tensors import Loaded, Stored, computed
from edgemt.export.graphs.graphset import Array, Canonical
from edgemt.export.graphs.transformer import ACTIVATIONS, Graphs, Shape, states
from edgemt.manifest import Model


def shape_of(checkpoint: Checkpoint) -> Shape:
    """The shape that config.json asks for. Raises EdgemtError if it is incomplete or not Marian's."""
    config, where = checkpoint.config, checkpoint.directory / "config.json"
    for flag in ("normalize_before", "normalize_embedding"):
        if config.get(flag):
            raise EdgemtError(
                f"{where} sets {flag}, which Hugging Face's Marian does not compute (it is post-norm only); "
                "convert the checkpoint to an architecture that has it"
            )
    activation = config.get("activation_function", "gelu")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise EdgemtError(f"{where} names the activation {activation}, and edgemt exports {known} for Marian")
    try:
        vocab, d = config["vocab_size"], config["d_model"]
        shape = Shape(
            d=d,
            vocab=config.get("decoder_vocab_size") or vocab,
            source_vocab=vocab,
            positions=config["max_position_embeddings"],
            encoder_layers=config["encoder_layers"],
            decoder_layers=config["decoder_layers"],
            encoder_heads=config["encoder_attention_heads"],
            decoder_heads=config["decoder_attention_heads"],
            encoder_ffn=config["encoder_ffn_dim"],
            decoder_ffn=config["decoder_ffn_dim"],
            activation=activation,
            embed_scale=math.sqrt(d) if config.get("scale_embedding") else 1.0,
            shared=config.get("share_encoder_decoder_embeddings", True),
            tied=config.get("tie_word_embeddings", True),
        )
    except KeyError as error:
        raise EdgemtError(f"{where} lacks {error}; give a complete Marian checkpoint") from None
    for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
        if not isinstance(config.get(key), int):
            raise EdgemtError(
                f"{where} has no {key}, nor has generation_config.json; give a complete checkpoint"
            )
    return shape


def sinusoids(positions: int, d: int) -> Array:
    """[positions, d] f32: sines, then cosines (not every checkpoint stores them)."""
    angle = np.arange(positions)[:, None] / np.power(10000, 2 * (np.arange(d)[None] // 2) / d)
    return np.concatenate([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], axis=1).astype(np.float32)


def _aliases(shape: Shape, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The weights with the names of one that is shared, and those that a formula gives, filled in."""
    filled, nothing = dict(tensors), np.zeros((1, shape.vocab), np.float32)
    positions = _constant(sinusoids(shape.positions, shape.d))
    for side in ("encoder", "decoder"):
        filled.setdefault(f"model.{side}.embed_positions.weight", positions)
        if shape.shared and "model.shared.weight" in tensors:
            filled[f"model.{side}.embed_tokens.weight"] = tensors["model.shared.weight"]
    if shape.tied and "model.decoder.embed_tokens.weight" in filled:
        filled["lm_head.weight"] = filled["model.decoder.embed_tokens.weight"]
    filled.setdefault("final_logits_bias", _constant(nothing))
    filled.pop("model.shared.weight", None)
    return filled


def _constant(array: Array) -> Stored:
    return computed(array.shape, "float32", "its formula", lambda: array)


def build(checkpoint: Checkpoint, source_prefix: dict[str, list[int]]) -> Canonical:
    """The canonical graphs of a checkpoint whose weights are checked. Raises EdgemtError as `shape_of`."""
    shape = shape_of(checkpoint)
    graphs = Graphs(shape, Loaded(_aliases(shape, checkpoint.stored)))
    encoder, step = graphs.encoder().model(), graphs.step().model()
    config = checkpoint.config
    model = Model(
        vocab_size=shape.vocab,
        eos_id=int(config["eos_token_id"]),
        pad_id=int(config["pad_token_id"]),
        unk_id=checkpoint.vocab.get("<unk>", 1),
        start_id=int(config["decoder_start_token_id"]),
        max_positions=shape.positions,
        source_prefix=source_prefix,
        suppress=checkpoint.special_ids(),
    )
    return Canonical(
        {"encoder": encoder, "step": step},
        graphs.weights,
        states=states(shape),
        model=model,
        features={"alignment": True},
    )
