"""What a device needs of a chat model's tokenizer: its byte pairs, and the tokens around a prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgemt.errors import EdgemtError, UsageError
from edgemt.export import template_trial
from edgemt.training.chat_tokenizer import Chat, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Prompts that a template could spoil, or whose ends could grow together with what stands around them.
PROBES = (
    "将以下文本翻译为英语：\n\n我对青霉素过敏。",
    "Translate the following segment into Chinese.\n\nTake {{ 2 }} tablets <b>twice</b> a day",
    "参考下面的翻译：\n手术 翻译成 surgery\n\n<source>{%x%}</source>",
)


@dataclass(frozen=True)
class ChatFiles:
    """A checkpoint's tokenizer, taken apart. `control`: ids of its added tokens, which no text spells."""

    before: list[int]
    after: list[int]
    end: int  # of an answer
    control: list[int]
    size: int  # its ids are below
    byte_pairs: str  # tokenizer.json without added tokens


def read_chat(directory: Path, gguf: str | None = None) -> ChatFiles:
    """Read the tokenizer in `directory`, or that inside its file `gguf`; transformers renders the template in
    a sandbox.

    Raises UsageError if there is none, or no template, and EdgemtError if it is not byte-level BPE or if the
    template does more than put the prompt between fixed tokens.
    """
    tokenizer = read_tokenizer(directory, gguf)
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    if whole["model"].get("type") != "BPE" or "ByteLevel" not in json.dumps(whole.get("decoder")):
        raise EdgemtError(
            f"the tokenizer in {directory} is not byte-level BPE, which is what edgemt runs for such models"
        )
    try_template(tokenizer, directory)
    chat = Chat(tokenizer, directory)
    for probe in PROBES:
        text = chat.rendered([{"role": "user", "content": probe}], True, directory)
        (prompt,) = chat.prompts([probe])
        if chat.special(text) != prompt or not chat.after:
            raise EdgemtError(
                f"the chat template in {directory} changes a prompt, or joins it with what is around it; "
                "edgemt takes templates that put a prompt between fixed tokens"
            )
    control = sorted({added["id"] for added in whole["added_tokens"]})
    whole |= {"added_tokens": [], "post_processor": None}  # which would add tokens of its own
    size = max([*whole["model"]["vocab"].values(), *control]) + 1
    return ChatFiles(chat.before, chat.after, chat.end, control, size, json.dumps(whole, ensure_ascii=False))


def try_template(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Raise UsageError if the chat template does not end soon, or does what a template should not."""
    template = tokenizer.chat_template
    if not isinstance(template, str):  # none, or several by name: transformers says so itself
        return
    user = {"role": "user", "content": "user"}
    chats = [([{"role": "user", "content": probe}], True) for probe in PROBES]
    chats += [([user], True), ([user, {"role": "assistant", "content": "assistant"}], False)]
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    if found := template_trial.problem(template, chats, tokens):
        raise UsageError(f"the chat template in {directory} {found}; replace it")
