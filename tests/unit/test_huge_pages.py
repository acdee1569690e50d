"""Memory that a load took is gathered in huge pages, and only that; without them nothing changes."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgemt.runtimes import huge_pages

SIZE = 64 << 20


def private(byte: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(byte * SIZE)
    return memory


def in_huge_pages() -> int:
    """Bytes of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("AnonHugePages"))


def gathers_at_once() -> bool:
    version = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    return version >= (6, 1) and bool(huge_pages.large_regions())


def test_what_is_new_and_large_is_gathered() -> None:
    if not gathers_at_once():
        pytest.skip("this system gathers no huge pages at once")
    old = private(b"o")
    start = in_huge_pages()
    with huge_pages.for_what_is_loaded(SIZE):
        new = private(b"n")
    gathered = in_huge_pages() - start
    assert SIZE // 2 <= gathered <= SIZE  # less where memory is short; the old block stays out of it
    assert new[:] == b"n" * SIZE and old[:] == b"o" * SIZE


@pytest.mark.parametrize(
    "others, left",
    [
        ([], [(10, 20)]),
        ([(0, 10), (20, 30)], [(10, 20)]),
        ([(12, 14), (16, 17)], [(10, 12), (14, 16), (17, 20)]),
        ([(5, 12), (18, 25)], [(12, 18)]),
        ([(10, 20)], []),
        ([(0, 30)], []),
    ],
)
def test_what_is_new_of_a_region(others: list[tuple[int, int]], left: list[tuple[int, int]]) -> None:
    assert list(huge_pages.without((10, 20), others)) == left


def test_little_stays_as_it_is() -> None:
    start = in_huge_pages()
    with huge_pages.for_what_is_loaded(2 * SIZE):
        memory = private(b"n")
    assert in_huge_pages() == start and memory[0] == ord("n")


def test_a_system_without_them_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for said in (None, "always madvise [never]"):
        if said:
            (tmp_path / "enabled").write_text(said)
        monkeypatch.setattr(huge_pages, "SYSTEM", tmp_path)
        assert huge_pages.large_regions() == []
        with huge_pages.for_what_is_loaded(0):
            pass


def test_an_error_within_it_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), huge_pages.for_what_is_loaded():
        _ = 1 // 0


def test_the_heap_belongs_to_it() -> None:
    """Where large blocks come from it, as glibc has it after some have been given back."""
    if not gathers_at_once():
        pytest.skip("this system gathers no huge pages at once")
    code = (
        "import ctypes\n"
        "from edgemt.runtimes import huge_pages\n"
        "from test_huge_pages import SIZE, in_huge_pages\n"
        "malloc = ctypes.CDLL(None).malloc\n"
        "malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]\n"
        "with huge_pages.for_what_is_loaded(SIZE // 2):\n"
        "    ctypes.memset(malloc(SIZE), 1, SIZE)\n"
        "assert in_huge_pages() >= SIZE // 2\n"
    )
    threshold = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1073741824"}
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(__file__).parent, env={**os.environ, **threshold}
    )
