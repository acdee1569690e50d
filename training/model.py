"""The Marian student and its training loss."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, MarianConfig, MarianMTModel

from edgemt.errors import UsageError
from edgemt.training.config import Model
from edgemt.training.data import Batch
from edgemt.training.vocabulary import EOS, PAD, UNK


def new_model(shape: Model, vocabulary_size: int, language_ids: list[int]) -> MarianMTModel:
    """A student with random weights, as transformers initialises them."""
    config = MarianConfig(
        vocab_size=vocabulary_size,
        decoder_vocab_size=vocabulary_size,
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
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        decoder_start_token_id=PAD,
        forced_eos_token_id=EOS,
        attn_implementation="eager",
    )
    model = MarianMTModel(config)
    model.generation_config = GenerationConfig(
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
        bad_words_ids=[[token] for token in (UNK, PAD, *language_ids)],
        max_length=shape.max_positions,
        num_beams=1,
    )
    return model


def start_from_checkpoint(model: MarianMTModel, checkpoint: Path, vocabulary_directory: Path) -> None:
    """Load the weights of a checkpoint directory whose vocabulary and shape are ours."""
    for name in ("source.spm", "model.safetensors"):
        if not (checkpoint / name).is_file():
            raise UsageError(f"{checkpoint} is not a checkpoint of edgemt: it has no {name}")
    if (checkpoint / "source.spm").read_bytes() != (vocabulary_directory / "source.spm").read_bytes():
        raise UsageError(
            f"{checkpoint} has another vocabulary than {vocabulary_directory}: use the checkpoint's own"
        )
    weights = load_file(checkpoint / "model.safetensors")
    ours = model.state_dict()
    for name, tensor in weights.items():
        if name not in ours or ours[name].shape != tensor.shape:
            raise UsageError(
                f"{checkpoint}: {name} {list(tensor.shape)} does not fit the model section of the config"
            )
    missing = {name for name, p in model.named_parameters() if p.requires_grad} - set(weights)
    if missing:
        raise UsageError(f"{checkpoint}: no weights for {sorted(missing)[0]}")
    model.load_state_dict(weights, strict=False)
    model.tie_weights()


def start_from_embedding(model: MarianMTModel, file: Path) -> None:
    """Copy `embedding` [vocabulary, d_model] of a safetensors file into the shared embedding."""
    embedding = load_file(file)["embedding"]
    shared = model.get_parameter("model.shared.weight")
    if embedding.shape != shared.shape:
        raise UsageError(
            f"{file}: the embedding is {list(embedding.shape)}, the model's {list(shared.shape)}"
        )
    with torch.no_grad():
        shared.copy_(embedding)


def summed_loss(model: MarianMTModel, batch: Batch, label_smoothing: float) -> Tensor:
    """Cross-entropy in nats, summed over the labels that are not padding; the head sees no padding at all."""
    hidden = model.model(
        input_ids=batch.source,
        attention_mask=batch.mask,
        decoder_input_ids=batch.decoder_input,
        use_cache=False,
    ).last_hidden_state
    real = batch.labels != PAD
    logits = model.lm_head(hidden[real])
    return functional.cross_entropy(
        logits.float(), batch.labels[real], label_smoothing=label_smoothing, reduction="sum"
    )
