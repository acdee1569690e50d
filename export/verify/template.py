"""The tokenizer and the chat template of a checkpoint: as transformers has them, and as a bundle will.

transformers renders templates in Jinja's sandbox. A bundle keeps the tokens around a prompt, and encodes the
prompt itself as text: what a user types is no control token there, whatever it spells.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemt.bpe import BytePairs
from edgemt.export.checkpoints.read import Checkpoint
from edgemt.export.families import family_of
from edgemt.training.chat_tokenizer import Chat, read_tokenizer
from edgemt.verify import tokens
from edgemt.verify.expectations import Expected
from edgemt.verify.sections import Check, Section, Table
from edgemt.verify.texts import CASES, HOSTILE, ROUND_TRIP

PROBE = "\ue000"  # a private character: no template holds it


def chat_of(checkpoint: Checkpoint) -> Chat:
    """By the tokenizer in the folder, or that inside a GGUF file, as `Checkpoint.chat` chooses it."""
    inside = checkpoint.form == "GGUF" and not (checkpoint.directory / "tokenizer.json").is_file()
    tokenizer = read_tokenizer(checkpoint.directory, checkpoint.path.name if inside else None)
    return Chat(tokenizer, checkpoint.directory)


def endings(chat: Chat, checkpoint: Checkpoint) -> dict[str, list[int]]:
    """What the template puts between a prompt and its answer, with a generation prompt and without."""
    found = {}
    for generate in (True, False):
        text = rendered(chat, PROBE, generate, checkpoint).split(PROBE)[1]
        if ids := chat.special(text):
            found.setdefault(tuple(ids), text)
    return {repr(text)[1:-1]: list(ids) for ids, text in found.items()}


def rendered(chat: Chat, text: str, generate: bool, checkpoint: Checkpoint) -> str:
    return chat.rendered([{"role": "user", "content": text}], generate, checkpoint.directory)


def section(checkpoint: Checkpoint, chat: Chat | None, known: Expected | None, work: Path) -> Section:
    """`work` gets the bundle's tokenizer. Of a family without prompts (`chat` None) only texts are spelt."""
    made = Section(tokens.NAME, tokens.TITLE)
    folder = work / "tokenizer"
    folder.mkdir()
    written = family_of(checkpoint).write_tokenizer(checkpoint, folder)
    if chat is None:
        from edgemt.tokenizer import Tokenizer

        tokens.spelling(made, Tokenizer(folder, written["tokenizer"]), exact=False)
        made.notes.append("an encoder-decoder model has no chat template")
        return made
    pairs = BytePairs(folder / written["tokenizer"]["bpe"], checkpoint.chat.control)
    template(made, chat, checkpoint)
    if known:
        named(made, chat, known)
    agreement(made, chat, pairs, checkpoint, written["chat"])
    tokens.spelling(made, pairs, exact=True)
    return made


def template(made: Section, chat: Chat, checkpoint: Checkpoint) -> None:
    """What the template puts around a prompt, as text and as ids."""
    for name, generate in (("with", True), ("without", False)):
        before, after = rendered(chat, PROBE, generate, checkpoint).split(PROBE)
        made.facts |= {f"before a prompt, {name} generation prompt": f"{before!r} {chat.special(before)}"}
        made.facts |= {f"after a prompt, {name} generation prompt": f"{after!r} {chat.special(after)}"}
    made.facts["end of an answer"] = f"{chat.tokenizer.convert_ids_to_tokens(chat.end)!r} {chat.end}"
    # What the tokenizer would put around a text of its own accord, on top of the template's.
    bare: Any = chat.tokenizer("a", add_special_tokens=True)["input_ids"]
    made.facts["a bare text becomes, with special tokens"] = chat.tokenizer.convert_ids_to_tokens(bare)
    made.facts["added tokens"] = len(chat.tokenizer.added_tokens_decoder)
    made.facts["tokenizer class"] = type(chat.tokenizer).__name__


def named(made: Section, chat: Chat, known: Expected) -> None:
    vocabulary = chat.tokenizer.get_vocab()
    for token, number in known.tokens.items():
        found = vocabulary.get(token)
        made.checks.append(Check(f"{token} has its id", found == number, found, number))


def agreement(
    made: Section, chat: Chat, pairs: BytePairs, checkpoint: Checkpoint, written: Mapping[str, list[int]]
) -> None:
    """Prompts and plain texts: what transformers makes of them, against the bundle's ids."""
    rows, differing = [], []
    for case in CASES:
        asked = case.prompt()
        theirs = chat.special(rendered(chat, asked, True, checkpoint))
        ours = [*written["before"], *pairs.encode(asked), *written["after"]]
        name = f"{case.template}, {case.source_lang}-{case.target_lang}"
        if ours != theirs:
            differing.append(name)
        rows.append((name, case.text, len(theirs), "equal" if ours == theirs else f"{len(ours)} others"))
    made.checks.append(
        Check(
            "prompts are the tokens that transformers' sandboxed rendering gives",
            not differing, ", ".join(differing) or "all", "all",
        )
    )  # fmt: skip
    made.tables.append(Table("prompts", ("template", "text", "tokens", "the bundle's"), rows))
    unlike = [name for name, text in ROUND_TRIP.items() if pairs.encode(text) != chat.plain([text])[0]]
    made.checks.append(
        Check("plain texts have transformers' tokens", not unlike, ", ".join(unlike) or "all", "all")
    )
    marks = {name: sum(i in pairs.control for i in chat.special(text)) for name, text in HOSTILE.items()}
    made.notes.append(
        "control tokens that transformers' own encoding makes of a user's text, and a bundle does not: "
        + ", ".join(f"{name} {count}" for name, count in marks.items())
    )
