"""Causal models: the loss on answers alone, greedy answers, checkpoints, resuming, learning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from causal_fixtures import causal_config, clinical_pairs, write_causal_data
from safetensors.torch import save_file
from training_fixtures import losses
from transformers import AutoModelForCausalLM

from edgemt.errors import EdgemtError, UsageError
from edgemt.prompts import translation_in
from edgemt.training.data import read_pairs
from edgemt.training.families import Origin
from edgemt.training.families.causal import KINDS, CausalFamily, make
from edgemt.training.instructions import instructions, read_terms
from edgemt.training.loop import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_causal_data(tmp_path_factory.mktemp("causal") / "data")


def new_family(data: Path, kind: str = "hunyuan_v1_dense", tie: bool = True) -> CausalFamily:
    torch.manual_seed(3)
    return make(causal_config(shape={"kind": kind, "tie": tie}), Origin(data, None))


# Examples and loss


def test_labels_are_the_answer_and_its_end_token_by_token(data: Path) -> None:
    family = new_family(data)
    pairs = clinical_pairs(30)
    examples = family.examples(pairs, family.config.data, 1)
    assert len(examples.ids) == 60
    batch = examples.batch(np.array([5, 40, 11]))
    decode = family.chat.tokenizer.decode
    assert batch.target_tokens == int(batch.predicts.sum()) == examples.target_lengths[[5, 40, 11]].sum()
    for row, example in enumerate([5, 40, 11]):
        ids, predicts = batch.ids[row].tolist(), batch.predicts[row].tolist()
        length = int(examples.lengths[example, 0])
        answered = [ids[place + 1] for place in range(len(ids) - 1) if predicts[place]]
        assert answered[-1] == family.chat.end and ids[length:] == [family.chat.pad] * (len(ids) - length)
        assert not any(predicts[length - 1 :])
        asked = ids[: predicts.index(True) + 1]
        assert asked[-1] == family.chat.after[-1]  # the answer begins right after the assistant's mark
        row_, side = divmod(example, 2)
        translated = translation_in(decode(answered[:-1]), "<target>" in decode(answered))
        assert translated.replace("<s1>", "").replace("</s1>", "") == pairs.texts[1 - side][row_]
        assert asked + answered == ids[:length]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers_on_the_answers(data: Path, kind: str) -> None:
    family = new_family(data, kind)
    batch = family.examples(clinical_pairs(10), family.config.data, 1).batch(np.arange(4))
    labels = torch.full_like(batch.ids, -100)
    labels[:, 1:][batch.predicts[:, :-1]] = batch.labels
    mask = (batch.ids != family.chat.pad).long()
    expected = (
        family.model(input_ids=batch.ids, attention_mask=mask, labels=labels).loss * batch.target_tokens
    )
    torch.testing.assert_close(family.summed_loss(family.model, batch), expected)


def test_padding_counts_for_nothing(data: Path) -> None:
    family = new_family(data)
    examples = family.examples(clinical_pairs(10), family.config.data, 1)
    together = family.summed_loss(family.model, examples.batch(np.arange(6)))
    alone = [family.summed_loss(family.model, examples.batch(np.array([i]))) for i in range(6)]
    torch.testing.assert_close(together, torch.stack(alone).sum())


def test_gradient_checkpointing_changes_no_gradient(data: Path) -> None:
    family = new_family(data)
    batch = family.examples(clinical_pairs(6), family.config.data, 1).batch(np.arange(4))
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            family.model.gradient_checkpointing_enable({"use_reentrant": False})
        family.model.zero_grad()
        family.summed_loss(family.model.train(), batch).backward()
        gradients.append([p.grad.clone() for p in family.model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_pairs_without_room_are_left_out(data: Path) -> None:
    family = new_family(data)
    pairs = clinical_pairs(30)
    short = family.config.data.model_copy(update={"max_length": 12})
    kept = family.examples(pairs, short, 1)
    assert 0 < len(kept.ids) < 60
    with pytest.raises(UsageError, match="no training pairs"):
        family.examples(pairs, family.config.data.model_copy(update={"max_length": 2}), 1)


# Models


def test_greedy_answers_do_not_depend_on_the_batch(data: Path) -> None:
    family = new_family(data, tie=False)  # tied and random, a model repeats its last token
    family.model.eval()
    texts = clinical_pairs(5).texts[0]
    alone = [family.translate([text], "zh", "en")[0] for text in texts]
    assert family.translate(texts, "zh", "en") == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_read_by_transformers_and_by_training(data: Path, kind: str, tmp_path: Path) -> None:
    family = new_family(data, kind)
    family.write_files(tmp_path)
    save_file(family.weights(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    batch = family.examples(clinical_pairs(6), family.config.data, 1).batch(np.arange(3))
    family.model.eval()
    expected = family.model(input_ids=batch.ids).logits
    theirs, how = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(how.values())
    torch.testing.assert_close(theirs.eval()(input_ids=batch.ids).logits, expected)
    again = make(causal_config(shape={"kind": kind}), Origin(None, tmp_path))
    assert torch.equal(again.model.eval()(input_ids=batch.ids).logits, expected)
    assert again.chat.prompts(["好。"]) == family.chat.prompts(["好。"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["tie_word_embeddings"]) == (kind, True)
    assert config["eos_token_id"] == family.chat.end
    assert ("lm_head.weight" in family.weights()) is False  # tied: once


def test_the_full_shape_is_hy_mt_1_8b(data: Path) -> None:
    full = {
        "hidden": 2048, "layers": 32, "heads": 16, "kv_heads": 4, "head_dim": 128, "ffn": 6144,
        "vocab_size": 120818, "max_positions": 262144,
    }  # fmt: skip
    with torch.device("meta"):
        model = make(causal_config(shape=full), Origin(data, None)).model
    assert sum(p.numel() for p in model.parameters()) == 1_791_080_448
    assert model.config.rope_scaling["alpha"] == 1000 and model.config.use_qk_norm


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"hidden": 128}, "causal.hidden = 128, but .* has 64: leave it out"),
        ({"kind": "llama"}, "causal.kind = llama, but .* has hunyuan_v1_dense"),
        ({"vocab_size": 2000}, "causal.vocab_size = 2000, but .* has 1500"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(
    data: Path, shape: dict[str, object], message: str, tmp_path: Path
) -> None:
    family = new_family(data)
    family.write_files(tmp_path)
    save_file(family.weights(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=message):
        make(causal_config(shape=shape), Origin(None, tmp_path))


def test_what_is_missing_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer\.json in .*python -m edgemt"):
        make(causal_config(), Origin(tmp_path, None))
    with pytest.raises(UsageError, match="needs --data"):
        make(causal_config(), Origin(None, None))
    with pytest.raises(UsageError, match=r"vocab_size is 9, but .* has 1500 tokens"):
        make(causal_config(shape={"vocab_size": 9}), Origin(data, None))
    family = new_family(data)
    save_file(family.weights(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EdgemtError, match=r"config\.json"):
        make(causal_config(), Origin(None, tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UsageError, match="of the kind gpt2; causal models are hunyuan_v1_dense"):
        make(causal_config(), Origin(None, tmp_path))


# Runs


def stop_after(run: Run, step: int) -> None:
    """Ask `run` to stop, as SIGTERM does, once it has done `step` steps."""
    update = run.average.update

    def update_and_stop(now: int) -> None:
        update(now)
        run.stopping = now >= step

    run.average.update = update_and_stop  # type: ignore[method-assign]


def test_a_run_learns_and_a_stopped_one_goes_on_bit_for_bit(data: Path, tmp_path: Path) -> None:
    config = causal_config(24)
    whole = Run(config, data, tmp_path / "whole")
    whole.train()
    part = Run(config, data, tmp_path / "part")
    stop_after(part, 9)
    part.train()
    rest = Run(config, data, tmp_path / "part")
    rest.train()
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    assert all(
        torch.equal(a, b) for a, b in zip(rest.model.parameters(), whole.model.parameters(), strict=True)
    )
    assert losses(tmp_path / "whole")[24] < 0.85 * losses(tmp_path / "whole")[1]


def test_twenty_pairs_are_learnt_with_terms_context_and_tags(tmp_path: Path) -> None:
    """A new HunYuanDenseV1, until it answers every prompt it was trained on as it was taught."""
    data = write_causal_data(tmp_path / "data", count=20, size=900, begin=734)
    config = causal_config(
        200,
        shape={"prompts": {"terminology": 0.5, "context": 0.4, "formatted": 0.3}},
        optimizer={"rate": 3e-3, "weight_decay": 0.0},
        schedule={"steps": 200, "warmup": 20, "cooldown": 50},
        ema_decay=0.0,
    )
    run = Run(config, data, tmp_path / "state")
    run.train()
    run.write_checkpoint(tmp_path / "out")
    family = make(causal_config(), Origin(None, tmp_path / "out"))
    family.model.eval()
    terms = read_terms(data / "terms.tsv", ("zh", "en"))
    prompts = config.causal.prompts
    taught = list(
        instructions(read_pairs(data / "train.tsv"), range(20), [0, 1], terms, prompts, config.seed)
    )
    for mark, least in (("参考下面", 10), ("参考上面", 8), ("<source>", 8)):
        assert sum(mark in example.prompt for example in taught) >= least
    answers = family.answer([example.prompt for example in taught], [120] * len(taught))
    assert answers == [example.answer for example in taught]
