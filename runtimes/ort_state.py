"""The state tensors of one request in ONNX Runtime: bound by address, written in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemt.runtimes.ort_graph import CODES, DEVICE, Binding, address
from edgemt.runtimes.protocol import I32, StateSpec


@dataclass(frozen=True)
class Encoded:
    """An encoded source: what the encoder graph wrote, by the name of the step input that takes it."""

    lengths: I32  # [rows]
    bias: NDArray[Any]  # [rows, 1, 1, source], added to attention scores
    states: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Prompts:
    """What a model without an encoder reads before it answers: its source, run with the first step."""

    ids: I32  # [rows, longest], right-padded
    lengths: I32  # [rows]

    def of(self, rows: I32) -> Prompts:
        return Prompts(self.ids[rows], self.lengths[rows])

    def before(self, ids: I32) -> tuple[I32, I32]:
        """The prompts with `ids` [rows, width] behind each, and where those begin in each row."""
        rows, width = ids.shape
        whole = np.zeros((rows, int(self.lengths.max()) + width), np.int32)
        whole[:, : self.ids.shape[1]] = self.ids
        np.put_along_axis(whole, self.lengths[:, None] + np.arange(width), ids, 1)
        return whole, self.lengths


@dataclass(frozen=True)
class Prefix:
    """A frozen copy of a session's own states (not of its source's). Many sessions may start from it."""

    lengths: I32  # [rows]
    past: int  # slots of the time axis
    used: NDArray[np.bool_] | None  # [rows, past]; None: every slot of every row
    states: dict[str, NDArray[Any]]

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.states.values())

    def first(self, length: int) -> Prefix:
        """See `Snapshot` in protocol.py; of rows that are all of one length."""
        assert self.used is None and length <= self.past
        states = {name: array[:length] for name, array in self.states.items()}
        return Prefix(np.full(self.rows, length, np.int32), length, None, states)


def shape_of(spec: StateSpec, **sizes: int) -> tuple[int, ...]:
    """The state's shape with its symbolic axes filled in."""
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)


class Cache:
    """A state that grows (`append`): `array` [capacity, …, rows, …], time first, `past` slots of it filled.

    A step reads those and writes its new slots straight behind them.
    """

    def __init__(self, spec: StateSpec, rows: int, slots: int) -> None:
        self.input, self.output, self.axis = spec.input, spec.output, spec.batch_axis
        self._code = CODES[np.dtype(spec.dtype).char]
        self._hold(np.empty(shape_of(spec, rows=rows, past=slots), spec.dtype))

    def _hold(self, array: NDArray[Any]) -> None:
        self.array, self._tail = array, array.shape[1:]
        self._address, self._slot_bytes = address(array), array.strides[0]

    def reserve(self, past: int, slots: int) -> None:
        """Make room for `slots` slots, keeping the first `past`."""
        if slots > len(self.array):  # it doubles, so that a long text copies each slot about once
            array = np.empty((max(slots, 2 * len(self.array)), *self._tail), self.array.dtype)
            array[:past] = self.array[:past]
            self._hold(array)

    def bind(self, raw: Any, past: int, width: int) -> None:
        raw.bind_input(self.input, DEVICE, self._code, (past, *self._tail), self._address)
        behind = self._address + past * self._slot_bytes
        raw.bind_output(self.output, DEVICE, self._code, (width, *self._tail), behind)

    def gather(self, rows: NDArray[np.intp], past: int) -> None:
        """Row i becomes old row rows[i]. A row that stays costs nothing while their number stays the same."""
        old = self.array[:past]
        if len(rows) == old.shape[self.axis]:
            moved = np.flatnonzero(rows != np.arange(len(rows)))
            old[(slice(None),) * self.axis + (moved,)] = old.take(rows[moved], axis=self.axis)
        else:
            shape = list(self.array.shape)
            shape[self.axis] = len(rows)
            array = np.empty(shape, self.array.dtype)
            old.take(rows, axis=self.axis, out=array[:past], mode="clip")  # other modes copy twice
            self._hold(array)

    def frozen(self, past: int) -> NDArray[Any]:
        return self.array[:past].copy()

    def restore(self, array: NDArray[Any]) -> None:
        """Start from [past, …, rows, …], or from one row for all."""
        self.reserve(0, len(array) + 1)
        self.array[: len(array)] = array


class Cell:
    """A recurrent state (`replace`): two buffers that change places after every step."""

    def __init__(self, spec: StateSpec, array: NDArray[Any]) -> None:
        self.input, self.output, self.axis = spec.input, spec.output, spec.batch_axis
        self.array, self._next = array, np.empty_like(array)

    def bind(self, binding: Binding) -> None:
        binding.input(self.input, self.array)
        binding.output(self.output, self._next)

    def swap(self, stay: NDArray[np.intp]) -> None:
        """Take the step's result, except in the rows `stay`, which took no token."""
        if len(stay):
            index = (slice(None),) * self.axis + (stay,)
            self._next[index] = self.array[index]
        self.array, self._next = self._next, self.array

    def restore(self, array: NDArray[Any]) -> None:
        self.array, self._next = array, np.empty_like(array)

    def gather(self, rows: NDArray[np.intp]) -> None:
        self.restore(self.array.take(rows, axis=self.axis))
