"""One request's decoding in ONNX Runtime.

All rows of a session share the time axis of its caches. A row may be shorter than that axis (after a ragged
step or a rewind): its slots without a token are then barred from attention. `_used` says which slots hold
tokens; it is None while all do, which is the fast case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemt.errors import EdgemtError
from edgemt.manifest import Model
from edgemt.runtimes import answer
from edgemt.runtimes.ort_graph import CODES, DEVICE, Binding, Graph, address
from edgemt.runtimes.ort_state import Cache, Cell, Encoded, Prefix, Prompts, shape_of
from edgemt.runtimes.protocol import I32, Caps, StateSpec, Step, Want

BARRED = -10000.0  # added to an attention score that may not count; within FP16
NONE = np.zeros(0, np.intp)


class OrtSession:
    """See `Session` in protocol.py. Made by `Program.open`; one thread at a time."""

    def __init__(
        self,
        graph: Graph,
        states: Sequence[StateSpec],
        model: Model,
        caps: Caps,
        source: Encoded | Prompts | None,
        rows: I32,
        slots: int,
    ) -> None:
        """`rows` are rows of `source`; the caches start with room for `slots` tokens, and grow.

        Prompts are run with the first step, in the same pass over the weights.
        """
        self.rows, self.past = len(rows), 0
        self.binding = Binding(graph)
        self._graph, self._model, self._caps = graph, model, caps
        self._source = source if isinstance(source, Encoded) else None
        self._prompts = source.of(rows) if isinstance(source, Prompts) else None
        self._used: NDArray[np.bool_] | None = None
        self._source_rows = np.asarray(rows, np.intp)
        self._constant = [spec for spec in states if spec.update == "constant"]
        self._caches = [Cache(spec, self.rows, slots) for spec in states if spec.update == "append"]
        self._cells = [Cell(spec, self._first(spec)) for spec in states if spec.update == "replace"]
        self.found: dict[str, NDArray[Any]] = {}  # the outputs' buffers
        self._bias_dtype = graph.inputs.get("self_bias")
        self._zeros: NDArray[Any] = np.zeros(0, self._bias_dtype)
        self._picks = "wanted" in graph.inputs  # the graph answers at the places asked for
        self._k = np.ones(1, np.int64)
        if "top_k" in graph.inputs:
            self.binding.input("top_k", self._k)
        self._bind_source()
        self._resize(1)

    def _first(self, spec: StateSpec) -> NDArray[Any]:
        if spec.init == "encoder" and self._source is not None:
            return self._source.states[spec.input].take(self._source_rows, axis=spec.batch_axis)
        return np.zeros(shape_of(spec, rows=self.rows), spec.dtype)

    def start_from(self, prefix: Prefix, rows: I32) -> None:
        """Copy the prefix's rows `rows` (or its only one, for all) into a session that is still empty."""
        index = np.zeros(self.rows, np.intp) if prefix.rows == 1 else np.asarray(rows, np.intp)
        if index.max() >= prefix.rows:
            raise EdgemtError(f"row {index.max()} of a prefix of {prefix.rows} rows was asked for")
        self.past = prefix.past
        self._used = None if prefix.used is None else prefix.used[index]
        for cache in self._caches:
            held = prefix.states[cache.input]
            cache.restore(held if prefix.rows == 1 else held.take(index, axis=cache.axis))
        for cell in self._cells:
            cell.restore(prefix.states[cell.input].take(index, axis=cell.axis))

    @property
    def lengths(self) -> I32:
        """[rows] tokens each row has taken so far."""
        if self._used is None:
            return np.full(self.rows, self.past, np.int32)
        return self._used.sum(1, dtype=np.int32)

    # One step.

    def step(self, ids: I32, widths: I32, want: Want) -> Step:
        """See the protocol. Columns that no row uses are not fed. A row of width 0 keeps its state.

        Raises EdgemtError for an id outside the vocabulary and for more tokens than the model has positions.
        """
        narrowest, width = int(widths.min()), int(widths.max())
        if ids.shape[0] != self.rows or not 0 < width <= ids.shape[1]:
            raise EdgemtError(
                f"a step of {ids.shape} ids for {self.rows} rows with up to {width} tokens each"
            )
        if width > self._caps.max_width:
            raise EdgemtError(f"a step of {width} tokens; this model takes {self._caps.max_width} at a time")
        self.feed(ids[:, :width], None if narrowest == width else widths, want.last)
        names = answer.needs(want, self._graph.outputs)
        self.run(names, answer.candidates(want, self._model))
        if want.last and width > 1 and not self._picks:
            ends = (widths - 1)[:, None, None]
            self.found = {name: np.take_along_axis(array, ends, 1) for name, array in self.found.items()}
            self._bound = None
        return answer.step(self.found, want, self._model)

    def feed(self, ids: I32, widths: I32 | None = None, last: bool = False) -> None:
        """Check [rows, width] ids, of which row r counts widths[r] (None: all), for the next run to read.

        A graph that answers at the places asked for does so at all of these, or at each row's last.
        """
        asked, first = ids.shape[1] if widths is None else widths, 0
        if self._prompts is not None:
            ids, first = self._prompts.before(ids)
            ends = first + asked
            widths = ends if ends.min() < ids.shape[1] else None
            self._prompts = None
        if ids.shape != self.ids.shape:
            self._resize(ids.shape[1])
        self.ids[...] = ids
        check_ids(self.ids, self._model)
        self._widths = widths
        if self._picks:
            width = int(np.max(asked))
            columns = np.add(asked, -1) if last else np.arange(width)
            places = np.reshape(first, (-1, 1)) + np.reshape(columns, (-1, 1) if last else (1, -1))
            self._pick(places * self.rows + np.arange(self.rows)[:, None])

    def next(self, tokens: NDArray[np.int64]) -> None:
        """Feed the model's own choice, one token a row."""
        if self.ids.shape[1] != 1:
            self._resize(1)
        self.ids[:, 0] = tokens
        self._widths = None

    def _pick(self, places: NDArray[np.integer]) -> None:
        """Bind the places [rows, n] whose answers are wanted, as column · rows + row."""
        self._wanted = np.ascontiguousarray(places, np.int32)
        self.binding.input("wanted", self._wanted)
        self._bound = None

    def run(self, outputs: frozenset[str], k: int = 1) -> None:
        """Execute a step on what was fed.

        `found` then holds these outputs (states apart); those of the graph's TopK are the best `k`.
        """
        past, width, widths = self.past, self.ids.shape[1], self._widths
        longest = past + width
        if self._used is None:
            if width == 1:
                self.positions.fill(past)
            else:
                self.positions[...] = np.arange(past, longest)
        else:
            lengths, last = self.lengths, self._model.max_positions - 1
            longest = int((lengths + (width if widths is None else widths)).max())
            np.minimum(lengths[:, None] + np.arange(width), last, out=self.positions)
        check_length(longest, self._model)
        self._bind_outputs(outputs, k)
        self._bind_states(width)
        if self._used is None and width == 1:
            self._bind_free_bias()
        else:
            self._bind_bias(width)
        self._graph.run(self.binding)
        self._advance(width, widths)

    def _advance(self, width: int, widths: I32 | None) -> None:
        """Count what a step of `width` slots has fed: a token each, or widths[r] tokens in row r."""
        for cell in self._cells:
            cell.swap(NONE if widths is None else np.flatnonzero(widths == 0))
        if self._used is not None or widths is not None:
            old = np.ones((self.rows, self.past), bool) if self._used is None else self._used
            counts = np.full(self.rows, width) if widths is None else widths
            self._used = np.concatenate([old, np.arange(width) < counts[:, None]], 1)
        self.past += width

    def _resize(self, width: int) -> None:
        """Buffers for the tokens of a step of this width; its outputs are to be bound again."""
        self.ids: I32 = np.zeros((self.rows, width), np.int32)
        self.positions: I32 = np.zeros((self.rows, width), np.int32)
        self.binding.input("input_ids", self.ids)
        if "position_ids" in self._graph.inputs:
            self.binding.input("position_ids", self.positions)
        self._widths: I32 | None = None
        self._bound: tuple[frozenset[str], int] | None = None
        if self._picks:
            self._pick(np.arange(self.rows)[:, None] + np.arange(width) * self.rows)

    def _bind_states(self, width: int) -> None:
        """Bind every state for a step of `width` tokens behind `past`."""
        past, raw = self.past, self.binding.raw
        if self._caches and past + width > len(self._caches[0].array):
            for cache in self._caches:
                cache.reserve(past, past + width)
        for cache in self._caches:
            cache.bind(raw, past, width)
        for cell in self._cells:
            cell.bind(self.binding)

    def _bind_free_bias(self) -> None:
        """Bind a self-attention bias that bars nothing, for one new token a row."""
        if self._bias_dtype is None:
            return
        total = self.past + 1
        if self.rows * total > self._zeros.size:
            self._zeros = np.zeros(self.rows * max(2 * total, 64), self._bias_dtype)
            self._zeros_at, self._zeros_code = address(self._zeros), CODES[self._bias_dtype.char]
        shape = (self.rows, 1, 1, total)
        self.binding.raw.bind_input("self_bias", DEVICE, self._zeros_code, shape, self._zeros_at)

    def _bind_bias(self, width: int) -> None:
        """Bind the self-attention bias [rows, 1, width, past + width]: causal, only slots with a token."""
        if self._bias_dtype is None:
            return
        bias = np.zeros((self.rows, 1, width, self.past + width), self._bias_dtype)
        if self._used is not None:
            bias[..., : self.past] = np.where(self._used, 0, BARRED)[:, None, None]
        bias[..., self.past :] = np.triu(np.full((width, width), BARRED), 1)
        self.binding.input("self_bias", bias)

    def _bind_outputs(self, names: frozenset[str], k: int) -> None:
        """Bind buffers for these outputs."""
        if self._bound == (names, k):
            return
        self._bound = (names, k)
        rows, width = self._wanted.shape if self._picks else self.ids.shape
        self.binding.clear_outputs()
        self._k[0] = k
        source = 0 if self._source is None else self._source.bias.shape[-1]
        sizes = {"top_ids": k, "top_values": k, "alignment": source}
        self.found = {
            name: np.empty((rows, width, sizes.get(name, self._model.vocab_size)), self._graph.outputs[name])
            for name in sorted(names)
        }
        for name, array in self.found.items():
            self.binding.output(name, array)

    def _bind_source(self) -> None:
        """Bind what comes from the encoder, copied only where the session's rows are not the source's."""
        if self._source is None:
            return
        index = self._source_rows
        same = np.array_equal(index, np.arange(len(self._source.lengths)))
        for spec in self._constant:
            array = self._source.states[spec.input]
            self.binding.input(spec.input, array if same else array.take(index, axis=spec.batch_axis))
        if "source_bias" in self._graph.inputs:
            self.binding.input("source_bias", self._source.bias if same else self._source.bias[index])

    # Rows and time.

    def reindex(self, rows: I32) -> None:
        """See the protocol. Rows that stay are free; source states move only if a row changes its source."""
        index = np.asarray(rows, np.intp)
        if len(index) == self.rows and (index == np.arange(self.rows)).all():
            return
        if not len(index) or index.min() < 0 or index.max() >= self.rows:
            raise EdgemtError(f"rows {index.tolist()} were asked for, of {self.rows}")
        for cache in self._caches:
            cache.gather(index, self.past)
        for cell in self._cells:
            cell.gather(index)
        sources, self._source_rows = self._source_rows, self._source_rows[index]
        if not np.array_equal(sources, self._source_rows):
            self._bind_source()
        if len(index) != self.rows:
            self.rows = len(index)
            self._resize(self.ids.shape[1])
        if self._used is not None:
            self._keep(self._used[index])

    def rewind(self, lengths: I32) -> None:
        """See the protocol. Raises EdgemtError for a recurrent model, which cannot go back."""
        if (lengths == self.lengths).all():
            return
        if self._cells:
            raise EdgemtError(
                "this model's decoder is recurrent and cannot take tokens back; decode without rewinding"
            )
        if (lengths < 0).any() or (lengths > self.lengths).any():
            raise EdgemtError(f"rewinding to {lengths.tolist()} tokens, of {self.lengths.tolist()}")
        if self._used is None and (lengths == lengths[0]).all():
            self.past = int(lengths[0])
            return
        used = np.ones((self.rows, self.past), bool) if self._used is None else self._used
        self._keep(used & (used.cumsum(1) <= lengths[:, None]))

    def _keep(self, used: NDArray[np.bool_]) -> None:
        """Forget the last slots, where no row uses them, and bar the others that are without a token."""
        self.past = int(np.flatnonzero(used.any(0))[-1]) + 1 if used.any() else 0
        used = used[:, : self.past]
        self._used = None if used.all() else used

    def snapshot(self) -> Prefix:
        """A frozen copy of what the session holds now."""
        states = {cache.input: cache.frozen(self.past) for cache in self._caches}
        states |= {cell.input: cell.array.copy() for cell in self._cells}
        return Prefix(self.lengths, self.past, self._used, states)

    def close(self) -> None:
        """Let go of the caches; the session cannot be used afterwards."""
        self._caches, self._cells, self._source = [], [], None
        self.binding.clear()


def check_ids(ids: I32, model: Model) -> None:
    """Raise EdgemtError unless 0 ≤ id < vocabulary: some kernels read whatever memory an id points at."""
    if ids.view(np.uint32).max() >= model.vocab_size:  # a negative id is a huge one here
        bad = ids[(ids < 0) | (ids >= model.vocab_size)][0]
        raise EdgemtError(
            f"token id {bad} is outside the model's vocabulary of {model.vocab_size}; use its own tokenizer"
        )


def check_length(tokens: int, model: Model) -> None:
    if tokens > model.max_positions:
        raise EdgemtError(
            f"{tokens} tokens, and the model has {model.max_positions} positions; split the text"
        )
