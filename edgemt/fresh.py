"""A job for a process of its own, whose memory and times nothing else has touched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from edgemt.errors import EdgemtError


def ask(module: str, job: Mapping[str, Any], who: str, cure: str, failed: str = "{}") -> dict[str, Any]:
    """What `python -m module` answers in JSON on stdout to the job, which it gets in JSON on stdin.

    Raises EdgemtError if it fails: `failed` with the last line that it said, or, where a signal ended it, a
    sentence about `who` it was, and the `cure` for want of memory.
    """
    done = subprocess.run(
        [sys.executable, "-m", module], input=json.dumps(job), capture_output=True, text=True
    )
    if done.returncode < 0:
        raise EdgemtError(
            f"{who} was ended by signal {-done.returncode}, as happens where memory runs out; {cure}"
        )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EdgemtError(failed.format(said[-1]))
    return json.loads(done.stdout)
