"""ONNX Runtime on the CPU: an encoder graph, a step graph run through bound memory, greedy search in one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from edgemt.errors import EdgemtError
from edgemt.manifest import Manifest
from edgemt.runtimes import prepacked
from edgemt.runtimes.ort_graph import CPU, Binding, Graph
from edgemt.runtimes.ort_session import BARRED, OrtSession, check_ids, check_length
from edgemt.runtimes.ort_state import Encoded, Prefix, Prompts, shape_of
from edgemt.runtimes.prepacked import Packed
from edgemt.runtimes.protocol import I32, Caps, RoleTensors, Tap

GREEDY = "greedy"  # the role of the graph that decodes a sentence whole
BEST = frozenset({"top_ids"})
MOST_SLOTS = 256  # tokens a new session has room for at once, however many it may take in the end


def load(
    directory: Path,
    manifest: Manifest,
    *,
    threads: int = 1,
    taps: RoleTensors | None = None,
    on_tap: Tap | None = None,
    providers: Sequence[str] = CPU,
    find: Callable[[Path, Manifest], Packed | None] = prepacked.find,
) -> OrtProgram:
    """Load the bundle's graphs. Raises EdgemtError if one is missing or damaged, or unlike the manifest.

    `find` says where they lie with their weights packed already; such a graph is loaded instead if it can be.
    Where the bundle has greedy search as a graph of its own, the step graph is loaded when something else
    first needs it (a beam, terms, several rows), and its memory is not taken before.
    """
    if "step" not in manifest.graphs:
        raise EdgemtError(f"{directory}: the manifest names no step graph; export the bundle again")

    packed = None if taps or tuple(providers) != CPU else find(directory, manifest)

    def opened(role: str, path: Path) -> Graph:
        found = Graph(path, role, threads, (taps or {}).get(role, ()), on_tap, providers)
        for problem in _disagreements(role, found, manifest):
            raise EdgemtError(f"{directory}: {problem}; export the bundle again")
        return found

    def graph(role: str) -> Graph:
        found = packed and packed.load(role, partial(opened, role))
        return found or opened(role, directory / manifest.graphs[role].file)

    roles = [
        role for role in ("encoder", GREEDY) if role in manifest.graphs and not (taps and role == GREEDY)
    ]
    return OrtProgram({role: graph(role) for role in roles}, partial(graph, "step"), manifest)


def _disagreements(role: str, graph: Graph, manifest: Manifest) -> Iterator[str]:
    """What keeps this graph from being run as the manifest says."""
    for spec in manifest.states:
        made_by = "encoder" if spec.update == "constant" or spec.init == "encoder" else "step"
        if role == "step" and spec.input not in graph.inputs:
            yield f"the step graph has no input {spec.input!r}, a state of the manifest"
        elif made_by not in manifest.graphs or (role == made_by and spec.output not in graph.outputs):
            yield f"no {made_by} graph has the output {spec.output!r}, a state of the manifest"
        elif spec.update == "write_at":
            yield f"state {spec.input!r} is written at an offset, which this runtime does not do"
        elif spec.update == "append" and (spec.length_axis != 0 or spec.init != "empty"):
            yield f"state {spec.input!r} does not grow from nothing along its first axis"


class OrtProgram:
    """See `Program` in protocol.py. Its sessions may run in as many threads as the caller likes."""

    def __init__(self, graphs: dict[str, Graph], step: Callable[[], Graph], manifest: Manifest) -> None:
        self._encoder, self._greedy = graphs.get("encoder"), graphs.get(GREEDY)
        self._load_step, self._lock, self._loaded_step = step, threading.Lock(), None
        self._states, self._model = manifest.states, manifest.model
        outputs = manifest.graphs["step"].outputs
        recurrent = any(spec.update == "replace" for spec in manifest.states)
        self.caps = Caps(
            max_length=manifest.model.max_positions,
            max_width=1 if recurrent else manifest.model.max_positions,
            rewind=0 if recurrent else None,
            alignment="alignment" in outputs,
            shortlist=True,
            greedy="top_ids" in outputs,
            prompts="encoder" not in manifest.graphs,
        )
        if self._greedy is None:
            self._step  # noqa: B018 - loaded now, so that what is wrong with it is told now

    @property
    def _step(self) -> Graph:
        with self._lock:
            if self._loaded_step is None:
                self._loaded_step = self._load_step()
            return self._loaded_step

    def encode(self, ids: I32, lengths: I32) -> Encoded | Prompts:
        """See the protocol. The result may serve any number of sessions.

        Of a model without an encoder the source is a prompt, which each session runs with its first step.

        Raises EdgemtError for an id outside the vocabulary, an empty row, and too many tokens for the model.
        """
        width = int(lengths.max())
        if len(lengths) != len(ids) or lengths.min() < 1 or width > ids.shape[1]:
            raise EdgemtError(f"source lengths {lengths.tolist()} do not fit ids of shape {ids.shape}")
        check_length(width, self._model)
        ids = np.ascontiguousarray(ids[:, :width], np.int32)
        check_ids(ids, self._model)
        if self._encoder is None:
            return Prompts(ids, np.array(lengths, np.int32))
        binding, inputs, rows = Binding(self._encoder), self._encoder.inputs, len(ids)
        positions = np.arange(width, dtype=np.int32)
        padding = positions >= lengths[:, None]
        bias = (padding * BARRED)[:, None, None].astype(inputs["source_bias"])
        binding.input("input_ids", ids)
        binding.input("position_ids", np.tile(positions, (rows, 1)))
        binding.input("source_bias", bias)
        states = {}
        for spec in self._states:
            if spec.init == "encoder":
                states[spec.input] = np.empty(shape_of(spec, rows=rows, source=width), spec.dtype)
                binding.output(spec.output, states[spec.input])
        self._encoder.run(binding)
        return Encoded(np.array(lengths, np.int32), bias, states)

    def open(
        self, source: Encoded | Prompts | None, rows: I32, max_new: int, prefix: Prefix | None = None
    ) -> OrtSession:
        """See the protocol. Of a prefix of several rows, row i starts from the prefix's row rows[i]."""
        if not len(rows) or (
            source is not None and not 0 <= np.min(rows) <= np.max(rows) < len(source.lengths)
        ):
            raise EdgemtError(
                f"source rows {list(rows)} were asked for, of {len(source.lengths) if source else 0}"
            )
        before = 0 if prefix is None else int(prefix.lengths.max())
        if isinstance(source, Prompts):
            before += int(source.lengths.max())
        check_length(before + max_new, self._model)
        slots = before + min(max_new, MOST_SLOTS) + 1
        session = OrtSession(self._step, self._states, self._model, self.caps, source, rows, slots)
        if prefix is not None:
            session.start_from(prefix, rows)
        return session

    def greedy(
        self,
        source: Encoded | Prompts,
        forced: I32,
        max_new: int,
        stop: I32,
        prefix: Prefix | None = None,
    ) -> list[I32]:
        """See the protocol. Each row yields at most `max_new` tokens, its stop token counted."""
        if (
            self._greedy
            and isinstance(source, Encoded)
            and forced.shape == (1, 1)
            and stop.tolist() == [self._model.eos_id]
        ):
            return [self._greedy_graph(self._greedy, source, forced, max_new)]
        return self._greedy_steps(source, forced, max_new, stop, prefix)

    def _greedy_graph(self, graph: Graph, source: Encoded, forced: I32, max_new: int) -> I32:
        """The tokens of the only row, decoded without returning to Python in between."""
        check_ids(forced, self._model)
        check_length(max_new, self._model)
        start, most = forced.astype(np.int64), np.array(max_new, np.int64)
        found = graph.session.run(["tokens"], {"start": start, "max_new": most, **source.states})
        tokens = np.asarray(found[0], np.int32).ravel()
        return tokens[:-1] if tokens.size and tokens[-1] == self._model.eos_id else tokens

    def _greedy_steps(
        self, source: Encoded | Prompts, forced: I32, max_new: int, stop: I32, prefix: Prefix | None
    ) -> list[I32]:
        """Step by step, for several rows and for graphs without a loop of their own.

        Between two runs of the graph Python takes 11 µs of a step of 141 (INT8, d 256, two layers, 10,000
        words, one row); the ten bindings alone are 4 of them.
        """
        rows, width = forced.shape
        session = self.open(source, np.arange(rows, dtype=np.int32), width + max_new - 1, prefix)
        if width > self.caps.max_width:
            for column in range(width - 1):
                session.feed(forced[:, column : column + 1])
                session.run(BEST)
            forced = forced[:, -1:]
        session.feed(forced, last=True)
        stops, nowhere = frozenset(stop.tolist()), []
        lines: list[list[int]] = [[] for _ in range(rows)]
        taking = list(lines)  # for every row of the session, the line that takes its tokens
        for _ in range(max_new):
            session.run(BEST)
            tokens = session.found["top_ids"][:, -1, 0]
            words = tokens.tolist()
            if not stops.isdisjoint(words):
                taking = [
                    nowhere if word in stops else line for line, word in zip(taking, words, strict=True)
                ]
                live = [row for row, line in enumerate(taking) if line is not nowhere]
                if not live:
                    break
                # Dropping rows copies the caches of the others, so that it waits for a quarter of them.
                if 4 * len(live) <= 3 * len(taking):
                    session.reindex(np.array(live, np.int32))
                    tokens, taking, words = tokens[live], [taking[r] for r in live], [words[r] for r in live]
            for line, word in zip(taking, words, strict=True):
                line.append(word)
            session.next(tokens)
        return [np.array(line, np.int32) for line in lines]
