"""Causal models: the chat template, the loss on answers alone, greedy answers, checkpoints, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from causal_fixtures import causal_config, clinical_pairs, write_causal_data
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from training_fixtures import losses
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from edgemt.errors import EdgemtError, UsageError
from edgemt.prompts import prompt, translation_in
from edgemt.training.chat_tokenizer import SPECIAL, Chat, read_tokenizer
from edgemt.training.families import Origin
from edgemt.training.families.causal import KINDS, CausalFamily, make
from edgemt.training.loop import Run

HERE = Path("here")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_causal_data(tmp_path_factory.mktemp("causal") / "data")


@pytest.fixture(scope="module")
def chat(data: Path) -> Chat:
    return Chat(read_tokenizer(data / "tokenizer"), data / "tokenizer")


def new_family(data: Path, kind: str = "hunyuan_v1_dense", tie: bool = True) -> CausalFamily:
    torch.manual_seed(3)
    return make(causal_config(shape={"kind": kind, "tie": tie}), Origin(data, None))


# The tokenizer


def test_ids_are_those_of_the_chat_template(data: Path, chat: Chat) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    question = prompt("您今天看什么科？", "zh", "en", context=["大爷，您好。"])
    messages = [{"role": "user", "content": question}]
    asked = chat.prompts([question])[0]
    assert asked == tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    messages.append({"role": "assistant", "content": "Which department?"})
    whole = tokenizer.apply_chat_template(messages)
    assert [*asked, *chat.answers(["Which department?"])[0]] == whole[:-1]  # then the template ends the turn
    assert tokenizer.convert_ids_to_tokens([whole[0], chat.end, chat.pad]) == [
        SPECIAL[0],
        SPECIAL[4],
        SPECIAL[1],
    ]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (whole[0], chat.end)


@given(text=st.one_of(st.text(), st.sampled_from(SPECIAL).map(lambda mark: f"a{mark}b")))
@settings(max_examples=200)
def test_any_text_survives_and_none_spells_a_special_token(chat: Chat, text: str) -> None:
    ids = chat.answers([text])[0]
    assert ids[-1] == chat.end
    assert not set(ids[:-1]) & chat.marks()
    assert chat.decode(ids) == text.strip()
    assert len(chat.prompts([text])[0]) == len(ids) - 1 + len(chat.before) + len(chat.after)


CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou translate.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def foreign_tokenizer(template: str | None, **special: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE({chr(code): code for code in range(128)}, []))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special)


def test_an_answer_ends_as_the_checkpoints_template_ends_it() -> None:
    tokenizer = foreign_tokenizer(CHATML)
    chat = Chat(tokenizer, HERE)
    system = "<|im_start|>system\nYou translate.<|im_end|>\n"
    asked = f"{system}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.prompts(["Hi"])[0] == tokenizer.encode(asked)
    assert tokenizer.convert_ids_to_tokens(chat.end) == "<|im_end|>" and chat.pad == chat.end


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "does not work"),
        ("{{ messages[0]['content'].__class__.__mro__ }}", "does not work"),  # the sandbox refuses
        ("{{ raise_exception('no users') }}", "no users"),
        ("nothing", "does not hold each message once"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "names no eos_token"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Chat(foreign_tokenizer(template), HERE)


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
