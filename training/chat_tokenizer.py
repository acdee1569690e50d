"""The tokenizer of a causal model: a new one like HY-MT's, and any, by its own chat template.

    python -m edgemt.training.chat_tokenizer DATA [--size 8000]

trains one on DATA/train.tsv into DATA/tokenizer, for a run that starts from no checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgemt.errors import UsageError
from edgemt.export.checkpoints.facts import first_line
from edgemt.prompts import answer_of, prompt

BEGIN, END_OF_ANSWER, PAD = "<｜hy_begin▁of▁sentence｜>", "<｜hy_place▁holder▁no▁2｜>", "<｜hy_▁pad▁｜>"
USER, ASSISTANT = "<｜hy_User｜>", "<｜hy_Assistant｜>"
END_OF_SYSTEM, END_OF_TURN = "<｜hy_place▁holder▁no▁3｜>", "<｜hy_place▁holder▁no▁8｜>"
SPECIAL = (BEGIN, PAD, USER, ASSISTANT, END_OF_ANSWER, END_OF_SYSTEM, END_OF_TURN)
CHAT_TEMPLATE = (  # renders as HY-MT1.5-1.8B's does
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    f"{BEGIN}{{{{ messages[0]['content'] }}}}{END_OF_SYSTEM}"
    f"{{% else %}}{{% set loop_messages = messages %}}{BEGIN}{{% endif %}}"
    "{% for message in loop_messages %}{% if message['role'] == 'user' %}"
    f"{USER}{{{{ message['content'] }}}}"
    "{% elif message['role'] == 'assistant' %}"
    f"{ASSISTANT}{{{{ message['content'] }}}}{END_OF_ANSWER}"
    "{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% else %}}{END_OF_TURN}{{% endif %}}"
)
# Words with the mark or space before them, single digits, marks, line breaks, spaces (HY-MT's and Qwen2's).
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEMPLATES_SEEN = 20  # so that the templates' words are few tokens, however small the corpus


def train_chat_tokenizer(
    sentences: Iterable[str], directory: Path, size: int, languages: Sequence[str] = ("zh", "en")
) -> None:
    """A byte-level BPE of `size` tokens with HY-MT's special tokens, which AutoTokenizer reads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*sentences, *templates(languages) * TEMPLATES_SEEN], trainer)
    tokenizer.add_special_tokens(list(SPECIAL))  # the last ids, as in HY-MT's
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END_OF_ANSWER,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    directory.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(directory, save_jinja_files=False)  # the template inside tokenizer_config.json


def templates(languages: Sequence[str]) -> list[str]:
    """Every template, in every direction, with nothing in it."""
    return [
        text
        for a in languages
        for b in languages
        if a != b
        for text in (
            prompt("", a, b),
            prompt("", a, b, terms=[("", "")]),
            prompt("", a, b, context=[""]),
            prompt("<s1></s1><s2></s2><s3></s3>", a, b, markup=True),
            answer_of("<s1></s1><s2></s2><s3></s3>", True),
        )
    ]


def read_tokenizer(directory: Path, gguf: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint or data folder, or of a GGUF file in it.

    Raises UsageError where there is none.
    """
    if not gguf and not (directory / "tokenizer.json").is_file():
        raise UsageError(
            f"no tokenizer.json in {directory}: copy the checkpoint's tokenizer files, or make a new one "
            "with python -m edgemt.training.chat_tokenizer DATA"
        )
    try:
        return AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, **({"gguf_file": gguf} if gguf else {})
        )
    except Exception as error:  # the files are foreign: their contents decide what is raised
        cure = "put the checkpoint's own tokenizer files beside it" if gguf else "copy it again"
        raise UsageError(
            f"the tokenizer in {directory / (gguf or '')} cannot be read ({first_line(error)}); {cure}"
        ) from None


class Chat:
    """Instructions and answers as token ids, by a tokenizer's own chat template.

    The text between the template's marks is encoded on its own, so that no text can spell a special token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, where: Path) -> None:
        self.tokenizer = tokenizer
        asked, answered = "\ue000", "\ue001"  # private characters: no template holds them
        user = {"role": "user", "content": asked}
        before, after = self.rendered([user], True, where).split(asked)
        rest = self.rendered([user, {"role": "assistant", "content": answered}], False, where)
        end = self.special(rest.split(answered)[-1])[:1]
        self.before, self.after = self.special(before), self.special(after)
        self.end: int = end[0] if end and end[0] in self.marks() else self.eos(where)
        pad = tokenizer.pad_token_id
        self.pad: int = self.end if pad is None else int(pad)  # pyright: ignore[reportArgumentType]

    def marks(self) -> set[int]:
        """Ids of the special tokens, named by the tokenizer or not."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {number for number, token in added if token.special}

    def rendered(self, messages: list[dict[str, str]], generate: bool, where: Path) -> str:
        """The template's text for the messages (transformers renders it in a sandbox)."""
        try:
            text: Any = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate
            )
        except Exception as error:  # a template is a program of its author
            raise UsageError(
                f"the chat template in {where} does not work ({first_line(error)}); replace it"
            ) from None
        if any(text.count(message["content"]) != 1 for message in messages):
            raise UsageError(f"the chat template in {where} does not hold each message once; replace it")
        return text

    def eos(self, where: Path) -> int:
        if self.tokenizer.eos_token_id is None:
            raise UsageError(f"the tokenizer in {where} names no eos_token; add it to tokenizer_config.json")
        return int(self.tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]

    def special(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts in which special tokens are spelt like any other word."""
        if not texts:
            return []
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]  # pyright: ignore

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids after which the model answers each text."""
        return [[*self.before, *ids, *self.after] for ids in self.plain(texts)]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each answer, with its end."""
        return [[*ids, self.end] for ids in self.plain(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer up to its end; special tokens leave no trace, spaces stay."""
        ids = list(ids)
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        text: Any = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip()


def main() -> None:
    from edgemt.training.data import read_pairs

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of train.tsv; gets tokenizer/")
    parser.add_argument("--size", type=int, default=8000, help="tokens (default 8000)")
    args = parser.parse_args()
    pairs = read_pairs(args.data / "train.tsv")
    sentences = (text for side in pairs.texts for text in side)
    train_chat_tokenizer(sentences, args.data / "tokenizer", args.size, pairs.languages)


if __name__ == "__main__":
    main()
