"""What loading a large model took from the system, in huge pages.

A token of the answer reads all weights, and with pages of 4 kB a tenth of that time goes into finding them
(Qwen2.5-Coder-1.5B at 4 bits, x86). Linux has huge pages ready for a program that asks
(https://docs.kernel.org/admin-guide/mm/transhuge.html); onnxruntime does not, so it is asked afterwards for
the memory that is new. From Linux 6.1 on it gathers them at once, before that little by little. Memory in
files, as `edgemt prepack` makes it, stays as it is.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
LEAST = 256 << 20  # bytes that a load takes; below, it would be work for nothing
ADVISE, COLLAPSE = 14, 25  # MADV_HUGEPAGE, MADV_COLLAPSE of Linux, the same on x86-64 and ARM

Region = tuple[int, int]  # first address, and the one behind the last


@contextmanager
def for_what_is_loaded(least: int = LEAST) -> Iterator[None]:
    """Private memory taken within it is in huge pages afterwards, if it is `least` bytes or more.

    Where the system does not do that, it stays as it is: nothing fails.
    """
    before = large_regions()
    yield
    new = [part for region in large_regions() for part in without(region, before)]
    if sum(end - start for start, end in new) < least:
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in new:
        if advise(start, end - start, ADVISE) == 0:
            advise(start, end - start, COLLAPSE)  # does what it can; unknown before Linux 6.1


def large_regions() -> list[Region]:
    """Writable private memory, of no file, that a huge page fits into; none where there are no huge pages.

    In order. Neighbours may be one.
    """
    try:
        if sys.platform != "linux" or "[never]" in (SYSTEM / "enabled").read_text(encoding="utf-8"):
            return []
        page = int((SYSTEM / "hpage_pmd_size").read_text(encoding="utf-8"))
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        span, rights, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(side, 16) for side in span.split("-"))
        if rights == "rw-p" and name in ([], ["[heap]"]) and end - start >= page:
            found.append((start, end))
    return found


def without(region: Region, others: Iterable[Region]) -> Iterator[Region]:
    """The parts of a region that are in none of the others, which are in order."""
    start, end = region
    for first, behind in others:
        if start < behind and first < end:
            if start < first:
                yield start, first
            start = behind
    if start < end:
        yield start, end
