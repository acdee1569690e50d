"""What tests share beside fixtures. Not in conftest.py: two suites have one of that name."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLINICAL = ROOT / "examples" / "medical-zh-en" / "data" / "clinical.tsv.gz"
CHECKPOINT = ROOT / "examples" / "medical-zh-en" / "checkpoint"

# A program for `python -c`: the command line, then its peak memory in bytes on stderr. Not ru_maxrss, which a
# process starts with at the size of the one that started it.
MEASURED = """
import sys
from edgemt.bench.process import peak_rss
from edgemt.cli import main
code = main(sys.argv[1:])
print(peak_rss(), file=sys.stderr)
sys.exit(code)
"""

Cli = Callable[..., subprocess.CompletedProcess[bytes]]


def one_sentence(result: subprocess.CompletedProcess[bytes]) -> str:
    """The error of a command that failed as it should: code 1 or 2, one line on stderr, no traceback."""
    message = result.stderr.decode()
    assert result.returncode in (1, 2), (result.returncode, message)
    assert "Traceback" not in message
    assert message.startswith("edgemt ") and message.count("\n") == 1, message
    return message
