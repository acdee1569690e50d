"""The family of decoder-only models (HY-MT, Qwen, Llama): a request becomes a prompt.

A prompt is `chat["before"]`, the tokens of one of HY-MT's templates (prompts.py), and `chat["after"]`, whose
last token is the model's start token: search feeds it as the first of the answer.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgemt.bpe import BytePairs
from edgemt.errors import EdgemtError, UsageError
from edgemt.family import Request
from edgemt.generate import DraftStats, generate
from edgemt.manifest import Manifest
from edgemt.prefixes import Prefixes, common
from edgemt.prompts import prompt
from edgemt.runtimes.protocol import Program, Snapshot
from edgemt.search import Hypothesis, SearchOptions, search

if TYPE_CHECKING:
    from edgemt.drafts import Drafts

PROBES = "a", "1"  # two texts that share no token with each other
FIRST = np.zeros(1, np.int32)
LIMIT = 512  # tokens of one text: what a template is not trained to go far beyond
CONTEXT = 256  # tokens of the sentences before it: each of them is read again for every text
ROOM, ROOM_MORE = 2, 16  # the positions that an answer should have: so many a token of the text, and these


def load(directory: Path, manifest: Manifest) -> Causal:
    if manifest.tokenizer.keys() != {"bpe"} or manifest.chat.keys() != {"before", "after"}:
        raise EdgemtError(f"{directory}: the manifest lacks the tokenizer or the chat of a causal model")
    return Causal(directory, manifest)


class Causal:
    """See `Family`."""

    prompts = True

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.model, self.chat = manifest.model, manifest.chat
        control = {*self.model.suppress, self.model.eos_id}
        self.tokenizer = BytePairs(directory / manifest.tokenizer["bpe"], control)
        # A sentence is measured, translated and counted: its tokens are asked for three times in a row.
        self._count = lru_cache(maxsize=32)(lambda text: len(self.tokenizer.encode(text)))
        self._head_of = lru_cache(maxsize=None)(self._find_head)
        self.draft: Drafts | None = None
        self.draft_stats, self._lock = DraftStats(), threading.Lock()
        self._prefixes: weakref.WeakKeyDictionary[Program, Prefixes] = weakref.WeakKeyDictionary()
        source, target = manifest.languages[0]
        around = len(self._row(Request("", source, target, markup=True)))  # the longest of the prompts
        most = min(LIMIT, (self.model.max_positions - around - ROOM_MORE) // (1 + ROOM))
        self.limit = max(1, min(manifest.generation.get("max_source_tokens", most), most))

    def tokens(self, text: str) -> int:
        return self._count(text)

    def source(self, request: Request, most: int | None = None) -> list[int]:
        if most is not None:
            request = self._cut(request, min(most, self.limit))
        length, positions = self.tokens(request.text), self.model.max_positions
        row: list[int] = []
        for row in map(self._row, self._smaller(request)):
            if len(row) + ROOM * length + ROOM_MORE <= positions:
                return row
        if len(row) + length > positions:
            raise UsageError(
                f"a text has {length} tokens, its prompt {len(row)}, and the model takes {positions} with "
                "the answer; split it in two"
            )
        return row

    def _row(self, request: Request) -> list[int]:
        asked = prompt(
            request.text,
            request.source_lang,
            request.target_lang,
            request.terms,
            request.context,
            request.markup,
        )
        return [*self.chat["before"], *self.tokenizer.encode(asked), *self.chat["after"][:-1]]

    def _smaller(self, request: Request) -> Iterator[Request]:
        """The request, then with less and less: the oldest context goes first, the terms at the end."""
        first, left = len(request.context), CONTEXT
        while first and (left := left - self.tokens(request.context[first - 1])) >= 0:
            first -= 1
        for start in range(first, len(request.context) + 1):
            yield dataclasses.replace(request, context=request.context[start:])
        for end in reversed(range(len(request.terms))):
            yield dataclasses.replace(request, context=(), terms=request.terms[:end])

    def generate(
        self,
        program: Program,
        requests: Sequence[Request],
        options: SearchOptions,
        most: int | None = None,
    ) -> list[Hypothesis]:
        """See `Family`. With `options.sampling` answers are drawn, without a constraint or beam."""
        plain = options.beam == 1 and not options.scores and not any(r.constraint for r in requests)
        if plain and (len(requests) == 1 or options.sampling):
            return [self._alone(program, request, options, most) for request in requests]
        rows = [self.source(request, most) for request in requests]
        lengths = [self.tokens(request.text) for request in requests]
        constraints = [request.constraint for request in requests]
        begun = self._begun(program, requests[0], rows)
        return search(program, rows, self.model, options, constraints, lengths=lengths, begun=begun)

    def stream(
        self, program: Program, request: Request, options: SearchOptions, most: int | None = None
    ) -> Generator[int]:
        """See `Family`. A constraint and a beam are left out of account."""
        row = self.source(request, most)
        return self._tokens(program, request, row, options, self._limit(request, row, options))

    def longest(self, request: Request, options: SearchOptions) -> int:
        """See `Family`."""
        return self._limit(request, self.source(request), options)

    def _alone(
        self, program: Program, request: Request, options: SearchOptions, most: int | None
    ) -> Hypothesis:
        row = self.source(request, most)
        limit = self._limit(request, row, options)
        tokens = tuple(self._tokens(program, request, row, options, limit))
        return Hypothesis(tokens, None, None, len(tokens) < limit)

    def _limit(self, request: Request, row: list[int], options: SearchOptions) -> int:
        return options.limit(self.tokens(request.text), self.model.max_positions - len(row))

    def _tokens(
        self, program: Program, request: Request, row: list[int], options: SearchOptions, limit: int
    ) -> Generator[int]:
        begun = self._begun(program, request, [row])
        rest = np.array([row if begun is None else row[begun.lengths[0] :]], np.int32)
        draft, stats = None, DraftStats()
        if self.draft is not None and options.sampling is None:
            draft = self.draft.start(program, self.model, self._head(request))
        session = program.open(program.encode(rest, FIRST + rest.shape[1]), FIRST, limit, begun)
        so_far = [*row, self.model.start_id]
        try:
            yield from generate(
                session, so_far, self.model, limit, sampling=options.sampling, draft=draft, stats=stats
            )
        finally:
            if draft is not None:
                with self._lock:
                    self.draft_stats.add(stats)

    def _begun(self, program: Program, request: Request, rows: Sequence[Sequence[int]]) -> Snapshot | None:
        with self._lock:
            prefixes = self._prefixes.setdefault(program, Prefixes())
        return prefixes.of(program, self._head(request), rows)

    def _head(self, request: Request) -> tuple[int, ...]:
        """The tokens that the prompts of all requests of this kind begin with."""
        kind = bool(request.terms), bool(request.context), request.markup
        return self._head_of(request.source_lang, request.target_lang, *kind)

    def _find_head(
        self, source: str, target: str, terms: bool, context: bool, markup: bool
    ) -> tuple[int, ...]:
        one, other = (
            self._row(Request(text, source, target, None, ((text, text),) * terms, (text,) * context, markup))
            for text in PROBES
        )
        return tuple(one[: common(one, other)])

    def _cut(self, request: Request, most: int) -> Request:
        ends = [end for _, end in self.tokenizer.offsets(request.text)]
        text = request.text if len(ends) <= most else request.text[: ends[most - 1]]
        return dataclasses.replace(request, text=text)
