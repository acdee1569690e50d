"""The header of a GGUF file, walked through before anything else reads it: do its lengths fit the file?

The package gguf, and transformers with it, take the counts in a header as they are; one array that says
it has 2^60 items keeps them busy for ever. Layout: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path

from edgemt.errors import EdgemtError

VERSIONS = (2, 3)
BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of a value, by its type
STRING, ARRAY = 8, 9
# The largest vocabularies (256,000 pieces, their scores and types, 500,000 merges) take half of the items;
# the package makes an object of each.
MOST_ITEMS = 1 << 21
MOST_ENTRIES = 1 << 16  # of the metadata, and tensors
LARGEST = 128 << 20  # bytes of a header
NAME = 1 << 16  # bytes of a name that are looked at
DEEPEST = 4  # arrays in each other
DIMENSIONS = 4
SMALLEST = 8  # weights in a byte, at most


class Wrong(Exception):
    """What a header says and cannot be."""


def check_header(path: Path) -> None:
    """Raise EdgemtError if the header of the GGUF file at `path` promises what the file has no room for.

    Takes no memory to speak of, and time by the number of strings in it, whatever the bytes are.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            Header(data).walk()
    except Wrong as error:
        raise EdgemtError(f"{path} is truncated or damaged ({error}); copy it again") from None


class Header:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.end = data, min(len(data), LARGEST)
        self.at = len(b"GGUF")
        self.items = 0  # of all arrays so far

    def walk(self) -> None:
        version = self.number(4)
        if version & 0xFFFF == 0 and version:
            raise Wrong("its numbers are big-endian")
        if version not in VERSIONS:
            raise Wrong(f"it says version {version} of GGUF, and edgemt reads 2 and 3")
        tensors, entries = self.number(8), self.number(8)
        for count, what in ((tensors, "tensors"), (entries, "entries")):
            if count > MOST_ENTRIES:
                raise Wrong(f"its header counts {count} {what}")
        for _ in range(entries):
            self.name()
            self.value(self.number(4))
        for _ in range(tensors):
            self.tensor()

    def value(self, kind: int, depth: int = 0) -> None:
        if kind in BYTES:
            self.skip(BYTES[kind])
        elif kind == STRING:
            self.string()
        elif kind == ARRAY and depth < DEEPEST:
            of, count = self.number(4), self.number(8)
            self.items += count
            if self.items > MOST_ITEMS:
                raise Wrong(f"its header has an array of {count} items at byte {self.at}")
            if of in BYTES:
                self.skip(count * BYTES[of])
            else:
                for _ in range(count):
                    self.value(of, depth + 1)
        else:
            raise Wrong(f"its header has a value of the unknown type {kind} at byte {self.at}")

    def tensor(self) -> None:
        self.name()
        dimensions = self.number(4)
        if not 0 < dimensions <= DIMENSIONS:
            raise Wrong(f"a tensor has {dimensions} dimensions at byte {self.at}")
        size = math.prod(self.number(8) for _ in range(dimensions))
        if not 0 < size <= SMALLEST * len(self.data):
            raise Wrong(f"a tensor has {size} weights at byte {self.at}")
        self.number(4)  # its type: the package knows those, and compares the size with the file's
        if (begins := self.number(8)) > len(self.data):
            raise Wrong(f"a tensor begins {begins} bytes behind the header")

    def name(self) -> None:
        start = self.at + 8
        self.string()
        name = self.data[start : min(self.at, start + NAME)].decode(errors="replace")
        if not name.isprintable():
            raise Wrong(f"its header has a name that is none at byte {start}")

    def string(self) -> None:
        length = self.number(8)
        if length > LARGEST:
            raise Wrong(f"its header has a text of {length} bytes at byte {self.at}")
        self.skip(length)

    def number(self, size: int) -> int:
        start = self.at
        self.skip(size)
        return int.from_bytes(self.data[start : self.at], "little")

    def skip(self, size: int) -> None:
        if self.at + size > self.end:
            raise Wrong(f"its header goes on for more than {self.end} bytes")
        self.at += size
