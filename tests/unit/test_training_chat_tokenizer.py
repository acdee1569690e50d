"""The chat tokenizer: HY-MT's special tokens and template, any checkpoint's own, and text that stays text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from causal_fixtures import causal_config, write_causal_data
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgemt.errors import UsageError
from edgemt.prompts import prompt
from edgemt.training import chat_tokenizer
from edgemt.training.chat_tokenizer import SPECIAL, Chat, read_tokenizer
from edgemt.training.families import Origin
from edgemt.training.families.causal import make

HERE = Path("here")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_causal_data(tmp_path_factory.mktemp("causal") / "data")


@pytest.fixture(scope="module")
def chat(data: Path) -> Chat:
    return Chat(read_tokenizer(data / "tokenizer"), data / "tokenizer")


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


def test_a_tokenizer_is_made_from_the_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.tsv").write_bytes((data / "train.tsv").read_bytes())
    monkeypatch.setattr(sys, "argv", ["chat_tokenizer", str(tmp_path), "--size", "700"])
    chat_tokenizer.main()
    family = make(causal_config(), Origin(tmp_path, None))
    assert family.model.config.vocab_size == len(family.chat.tokenizer) == 700
    question = prompt("", "zh", "en")
    assert len(family.chat.plain([question])[0]) < 10  # the templates are few tokens
