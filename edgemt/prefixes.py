"""The beginning that many prompts share is run once, and sessions start from a copy of what it left."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from edgemt.runtimes.protocol import Program, Snapshot, Want

FIRST = np.zeros(1, np.int32)
SHORTEST = 8  # tokens: a shorter beginning costs more than it saves
MOST = 16  # beginnings kept: as many as two directions have kinds of prompts
MOST_BYTES = 128 << 20


class Prefixes:
    """The beginnings that one program has run, the least recently used dropped first. Thread-safe."""

    def __init__(self) -> None:
        self.lock, self.held = threading.Lock(), OrderedDict[tuple[int, ...], Snapshot]()

    def of(self, program: Program, head: Sequence[int], rows: Sequence[Sequence[int]]) -> Snapshot | None:
        """What `program` holds after the tokens of `head` that all `rows` begin with; None if they are few.

        At least one token of every row stays to be read. `head` is run by itself whether or not it is known
        already, so that an answer never depends on those before it.
        """
        length = min(common(head, row[:-1]) for row in rows)
        if length < SHORTEST:
            return None
        key = tuple(head)
        with self.lock:
            found = self.held.get(key)
            if found is not None:
                self.held.move_to_end(key)
        if found is None:
            found = run(program, key)
            with self.lock:
                self.held[key] = found
                while len(self.held) > MOST or self.size > MOST_BYTES:
                    self.held.popitem(last=False)
        return found if length == len(key) else found.first(length)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(held.nbytes for held in self.held.values())


def run(program: Program, head: Sequence[int]) -> Snapshot:
    session = program.open(None, FIRST, len(head))
    session.step(np.array([head], np.int32), FIRST + len(head), Want(last=True))
    found = session.snapshot()
    session.close()
    return found


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
