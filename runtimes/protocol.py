"""What search sees of a runtime: an immutable `Program`, and a `Session` that one request owns.

M runtimes plus N model families, never M times N. The runtime builds positions, masks and padding from
lengths; a family sees tokens only, and search asks `Caps` what a program can do, never guesses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class StateSpec:
    """One state tensor of a step graph, as the manifest lists it.

    `shape` names the symbolic axes ("rows", "past", "source"); `batch_axis` and `length_axis` index into it.
    """

    input: str  # graph input that takes it
    output: str  # graph output it comes from: the step's, or the encoder's where `init` is "encoder"
    role: Literal["self_kv", "cross_kv", "recurrent"]
    update: Literal["append", "write_at", "replace", "constant"]
    init: Literal["empty", "zeros", "encoder"]
    shape: tuple[int | str, ...]
    dtype: str
    batch_axis: int
    length_axis: int | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StateSpec:
        return cls(**{**data, "shape": tuple(data["shape"])})


@dataclass(frozen=True)
class Caps:
    """What a program can do. None means no limit, except for `rewind`, where 0 means never."""

    max_rows: int | None = None
    source_buckets: tuple[int, ...] | None = None
    max_length: int | None = None  # positions the model has
    max_width: int = 1  # tokens one step may take (prefill, verification)
    rewind: int | None = None  # tokens back; None: any number
    alignment: bool = False
    shortlist: bool = False
    greedy: bool = False
    prompts: bool = False  # a source is a prompt, and takes positions of the same model


@dataclass(frozen=True)
class Want:
    """What one step should return: never all logits by default."""

    top_k: int = 1  # ids and normalised log-probabilities of the best k
    score: I32 | None = None  # [rows, width, C] ids to score exactly (constraints)
    shortlist: I32 | None = None  # [C] ids the softmax is taken over
    suppress: I32 | None = None  # [C] ids that may not be chosen
    last: bool = False  # answers to each row's last token only: all that follow have width 1
    logits: bool = False
    alignment: bool = False


@dataclass
class Step:
    """What came back. k is `Want.top_k`, V the vocabulary, C the number of ids to score."""

    ids: I32  # [rows, width, k], best first
    logp: F32  # [rows, width, k], log-probabilities over the vocabulary
    scored: F32 | None = None  # [rows, width, C]
    logits: F32 | None = None  # [rows, width, V]
    alignment: F32 | None = None  # [rows, width, source], cross-attention averaged over heads


Source = Any  # an encoded input; stays inside the runtime


class Snapshot(Protocol):
    """What a session held, frozen. Many sessions may start from it; its tensors stay inside the runtime."""

    @property
    def lengths(self) -> I32: ...  # [rows] tokens
    @property
    def nbytes(self) -> int: ...
    def first(self, length: int) -> Snapshot:
        """What it held after the first `length` tokens of every row (not of a recurrent model)."""
        ...


class Session(Protocol):
    """One request's decoding. Its state lives in the runtime and is not copied between steps."""

    rows: int
    lengths: I32  # [rows] tokens each row has taken so far

    def step(self, ids: I32, widths: I32, want: Want) -> Step:
        """Feed `ids` [rows, width], of which row r uses the first `widths[r]`; return what is wanted."""
        ...

    def reindex(self, rows: I32) -> None:
        """Row i becomes a copy of old row rows[i]: beams are dropped, copied, reordered."""
        ...

    def rewind(self, lengths: I32) -> None:
        """Forget the newest tokens of each row, so that row r keeps lengths[r] of them."""
        ...

    def snapshot(self) -> Snapshot: ...
    def close(self) -> None: ...


class Program(Protocol):
    """A compiled model: immutable, thread-safe, shared by all sessions."""

    caps: Caps

    def encode(self, ids: I32, lengths: I32) -> Source:
        """Encode `ids` [rows, source] (right-padded; row r has lengths[r] tokens)."""
        ...

    def open(self, source: Source | None, rows: I32, max_new: int, prefix: Snapshot | None = None) -> Session:
        """A session whose row i decodes source row rows[i], with room for `max_new` tokens.

        It starts from row rows[i] of `prefix`, or from its only one; a source that is a prompt comes behind.
        """
        ...

    def greedy(
        self, source: Source, forced: I32, max_new: int, stop: I32, prefix: Snapshot | None = None
    ) -> list[I32]:
        """If caps.greedy: the fused loop. `forced` [rows, F] are the first decoder inputs (the start token);
        returns each row's new tokens, up to and without the first token in `stop`. `prefix` as in `open`."""
        ...


class Tap(Protocol):
    """A listener to intermediate tensors of a graph while it runs (calibration)."""

    def __call__(self, role: str, tensors: Mapping[str, NDArray[Any]], /) -> None: ...


RoleTensors = Mapping[str, Sequence[str]]  # graph role -> names of intermediate tensors to listen to
