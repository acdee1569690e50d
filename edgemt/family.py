"""What a family of models is to the translator: it makes tokens of a request, and has them decoded."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edgemt.constraints import Constraint
from edgemt.runtimes.protocol import Program
from edgemt.search import Hypothesis, SearchOptions


@dataclass(frozen=True)
class Request:
    """One sentence to translate."""

    text: str
    source_lang: str
    target_lang: str
    constraint: Constraint | None = None  # what the translation must contain
    # What only a family with `prompts` reads:
    terms: tuple[tuple[str, str], ...] = ()  # glossary terms that occur in the text, source and target
    context: tuple[str, ...] = ()  # sentences of the source before the text
    markup: bool = False  # the text has tags <s1>…</s1>, which the translation is to keep

    @property
    def direction(self) -> str:
        return f"{self.source_lang}-{self.target_lang}"


class Tokenizer(Protocol):
    """Text to ids and back. Thread-safe; what a user types never becomes a control token."""

    pieces: Mapping[int, str]
    unknown: int  # id of what the vocabulary cannot write
    control: frozenset[int]

    @property
    def inner(self) -> frozenset[int]:
        """Ids that go on with a word in Latin letters, or a number, if they stand behind one."""
        ...

    @property
    def words(self) -> frozenset[int]:
        """Ids that end in a Latin letter or a digit."""
        ...

    @property
    def digits(self) -> frozenset[int]: ...
    @property
    def closing(self) -> frozenset[int]: ...
    def encode(self, text: str) -> list[int]: ...
    def offsets(self, text: str) -> list[tuple[int, int]]: ...
    def encode_target(self, text: str) -> list[int]: ...
    def spellings(self, text: str, glued: bool, language: str) -> list[list[int]]:
        """The ids that write `text` as a word of an output; `glued`: also right behind a mark."""
        ...

    def decode(self, ids: Iterable[int]) -> str: ...


class Family(Protocol):
    """The models of one kind. Made by the module's `load(directory, manifest)`."""

    tokenizer: Tokenizer
    prompts: bool  # reads terms, context and markup of a request; samples and streams

    def tokens(self, text: str) -> int:
        """How many tokens of the model a source text takes."""
        ...

    @property
    def limit(self) -> int:
        """The most tokens of one source text."""
        ...

    def source(self, request: Request, most: int | None = None) -> list[int]:
        """The program's input: the text with all that goes around it. `most` and errors as in `generate`.

        Where it is too long for the model, the context (the oldest first) and then the terms are left out.
        """
        ...

    def generate(
        self,
        program: Program,
        requests: Sequence[Request],
        options: SearchOptions,
        most: int | None = None,
    ) -> list[Hypothesis]:
        """The best translation of each request, as target ids.

        With `most`, texts are cut to so many tokens, and to what the model takes; without it, UsageError is
        raised for a text that the model does not take.
        """
        ...

    def stream(
        self, program: Program, request: Request, options: SearchOptions, most: int | None = None
    ) -> Generator[int]:
        """Where `prompts`: the target ids of one greedy or sampled answer as they come.

        Closing the iterator ends the work. A constraint and a beam are left out of account.
        """
        ...

    def longest(self, request: Request, options: SearchOptions) -> int:
        """Where `prompts`: the most tokens of an answer; one of so many is not finished."""
        ...
