"""Fixtures of the emulated suites."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
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
def heldout() -> list[dict[str, str]]:
    """The default checkpoint's held-out sentences, both directions by turns."""
    file = ROOT / "examples" / "medical-zh-en" / "checkpoint" / "heldout.tsv"
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    sides = [[row for row in rows if row["source_lang"] == language] for language in ("zh", "en")]
    return [row for pair in zip(*sides, strict=True) for row in pair]
