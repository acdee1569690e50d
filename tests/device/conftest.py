"""Fixtures of the emulated suites."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from support import CHECKPOINT, ROOT

from edgemt.export.rows import Row, interleaved, read_rows

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # for tests.device, wherever pytest was started


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without qemu these tests are skipped, but not where EDGEMT_EMULATION=required says that it is there."""
    missing = [name for name in ("qemu-aarch64", "qemu-x86_64") if shutil.which(name) is None]
    if missing and os.environ.get("EDGEMT_EMULATION") != "required":
        skip = pytest.mark.skip(reason=f"{missing[0]} is not installed (Debian: qemu-user)")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def heldout() -> list[Row]:
    """The default checkpoint's held-out sentences, both directions by turns."""
    rows = read_rows(CHECKPOINT / "heldout.tsv", [("zh", "en"), ("en", "zh")])
    return interleaved(rows, len(rows))
