"""Drafts for speculative decoding: they propose tokens, and one step of the model says which are its own.

The answer is greedy search's, token by token (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, at
temperature 0; the loop is in generate.py). A draft is a look-up of what followed the same tokens before, or a
smaller model with the same vocabulary.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgemt.bundle import Bundle, open_bundle
from edgemt.errors import UsageError
from edgemt.manifest import Model as Numbers
from edgemt.pace import Pace
from edgemt.prefixes import FIRST, Prefixes, common
from edgemt.runtimes import open_program
from edgemt.runtimes.protocol import F32, Program, Session, Want

LOOKUP = "lookup"
LONGEST, SHORTEST = 4, 2  # tokens that must have come before, for what followed them to be proposed
SURE = 0.4  # the draft model goes on while its choice has this probability (transformers' default)
# Ways to feed twelve tokens. Where the kernels treat every row alike, all give the same logits to the last
# bit. None begins with one token, for which some kernels have a way of their own: no prompt is so short.
WAYS = ([12], [2, 1, 1, 1, 1, 6], [3, 4, 5], [5, 1, 2, 4])
SAFETY, MOST_MARGIN = 32, 0.05  # the margin is so many times the difference seen; more is of no use
# Where activations are rounded to 8 bits, a last bit can become a whole step of them, and that change a logit
# by 1.0 (SmolLM2-135M): nothing but equal bits will do there.
FLOATS = ("fp32", "fp16")


class Draft(Protocol):
    """Proposes what one answer goes on with; `margin` is how sure a wide step must be, `pace` shared."""

    pace: Pace
    margin: float

    def propose(self, history: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow `history`."""
        ...

    def close(self) -> None: ...


class Lookup:
    """Prompt look-up decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding).

    What followed the newest place where prompt and answer had the same last `longest` tokens, or fewer, down
    to `shortest`.
    """

    def __init__(
        self, longest: int = LONGEST, shortest: int = SHORTEST, pace: Pace | None = None, margin: float = 0.0
    ) -> None:
        self.longest, self.shortest = longest, shortest
        self.pace, self.margin = pace or Pace(), margin

    def propose(self, history: Sequence[int], most: int) -> list[int]:
        end, place, size = len(history), 0, self.shortest - 1
        for at in range(end - 1, self.shortest - 1, -1):  # what would be proposed begins there
            if history[at - 1] != history[-1]:
                continue
            same = 1
            while same < self.longest and same < at and history[at - 1 - same] == history[end - 1 - same]:
                same += 1
            if same > size:
                place, size = at, same
                if size == self.longest:
                    break
        return list(history[place : place + most]) if place else []

    def close(self) -> None:
        pass


class Model:
    """A smaller model's greedy choice, while its probability is `sure`. `head` begins the prompt."""

    def __init__(
        self,
        program: Program,
        model: Numbers,
        prefixes: Prefixes,
        head: Sequence[int],
        pace: Pace | None = None,
        margin: float = 0.0,
        sure: float = SURE,
    ) -> None:
        self.pace, self.margin = pace or Pace(), margin
        self._least = float(np.log(sure)) if sure else -np.inf
        self._program, self._model, self._prefixes, self._head = program, model, prefixes, head
        self._session: Session | None = None
        self._fed: list[int] = []

    def propose(self, history: Sequence[int], most: int) -> list[int]:
        most = min(most, self._model.max_positions - len(history))
        if most < 1:
            return []
        session = self._session or self._open(history)
        known = min(common(self._fed, history), len(history) - 1)
        new, found = list(history[known:]), []
        if max(new) >= self._model.vocab_size:  # the tables of two sizes of a model may be padded differently
            return []
        session.rewind(FIRST + known)
        for _ in range(most):
            step = session.step(np.array([new], np.int32), FIRST + len(new), Want(last=True))
            if step.logp[0, 0, 0] < self._least:
                break
            new = [int(step.ids[0, 0, 0])]
            found += new
        self._fed = [*history, *found][: int(session.lengths[0])]
        return found

    def _open(self, history: Sequence[int]) -> Session:
        begun = self._prefixes.of(self._program, self._head, [history])
        session = self._program.open(None, FIRST, 1, begun)
        self._fed = [] if begun is None else list(history[: begun.lengths[0]])
        self._session = session
        return session

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


class Drafts:
    """The drafts of a family's answers: a look-up, or another bundle's model. Thread-safe."""

    def __init__(
        self, bundle: Bundle | None = None, threads: int = 1, most_margin: float = MOST_MARGIN
    ) -> None:
        self._most_margin = most_margin
        self._bundle, self._pace, self._prefixes, self._lock = bundle, Pace(), Prefixes(), threading.Lock()
        self._program = bundle and open_program(bundle.directory, bundle.manifest, threads=threads)
        self._margins: weakref.WeakKeyDictionary[Program, float] = weakref.WeakKeyDictionary()

    def start(self, program: Program, model: Numbers, head: Sequence[int]) -> Draft:
        """A draft for an answer of `program`, whose prompt begins with `head`.

        Raises UsageError if steps of several tokens do not say reliably what greedy search would.
        """
        with self._lock:
            if program not in self._margins:
                self._margins[program] = margin(program, model)
        apart = self._margins[program]
        if apart > self._most_margin:
            raise UsageError(
                "a draft would change what the model says, since on this processor several tokens at once "
                "come out otherwise than one by one; translate without one, or export with --int4-block 32"
            )
        if self._bundle is None or self._program is None:
            return Lookup(pace=self._pace, margin=apart)
        numbers = self._bundle.manifest.model
        return Model(self._program, numbers, self._prefixes, head, self._pace, apart)


def attach_draft(family: Any, bundle: Bundle, draft: str | Path, threads: int = 1) -> None:
    """Let the greedy answers of `family`, that of `bundle`, be drafted by "lookup" or the bundle `draft`.

    Raises UsageError for a family that takes no draft and for a draft with another vocabulary.
    """
    name = bundle.manifest.name
    if not family.prompts:
        raise UsageError(f"{name} is not a decoder-only model and takes no draft; leave --draft out")
    most = MOST_MARGIN if bundle.manifest.precision in FLOATS else 0.0
    if str(draft) == LOOKUP:
        family.draft = Drafts(most_margin=most)
        return
    other = open_bundle(Path(draft))
    if vocabulary(other) != vocabulary(bundle):
        raise UsageError(
            f"the draft {draft} has another vocabulary than {name}; give a smaller model of the same kind, "
            f"or {LOOKUP}"
        )
    family.draft = Drafts(other, threads, most)


def vocabulary(bundle: Bundle) -> tuple[dict[str, int], int]:
    """The number of every piece, and that of the end of an answer; empty where it has no byte pairs."""
    file = bundle.manifest.tokenizer.get("bpe")
    pieces = json.loads(bundle.file(file).read_bytes())["model"]["vocab"] if file else {}
    return pieces, bundle.manifest.model.eos_id


def margin(program: Program, model: Numbers) -> float:
    """How far ahead (in log-probability) a token must be for a step of several to decide on it.

    0 where such steps give the same bits as steps of one token: 4-bit bundles on x86 with VNNI and on a
    Cortex-A76. Without VNNI the kernel of 4-bit products is another for one row.
    """
    ids = np.random.default_rng(0).integers(0, model.vocab_size, (1, sum(WAYS[0]))).astype(np.int32)
    found = [_logits(program, ids, way) for way in WAYS]
    return SAFETY * max(float(np.abs(other - found[0]).max()) for other in found[1:])


def _logits(program: Program, ids: np.ndarray, widths: Sequence[int]) -> F32:
    session, parts = program.open(None, FIRST, ids.shape[1]), []
    for width in widths:
        start = int(session.lengths[0])
        step = session.step(ids[:, start : start + width], FIRST + width, Want(logits=True))
        assert step.logits is not None
        parts.append(step.logits[0])
    session.close()
    return np.concatenate(parts)
