"""The processes of a comparison: what each mode is told, kept when it is done, and found again.

`directory`/MODE-HASH is one mode's training (state, log, result.json), `directory`/timing/MODE-HASH-NUMBER a
clocked round of it. The hash is of everything that decides the outcome, so a command that is given again goes
on where it was interrupted, and one with another configuration starts beside it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from edgemt.errors import EdgemtError, UsageError
from edgemt.training.compare.worker import FAILURE, INTERRUPTED
from edgemt.training.config import Config
from edgemt.training.files import replacing
from edgemt.training.log import LOG, read_log

RESULT = "result.json"
WARM_UP = 3  # steps of a clocked round that are not counted: the first ones allocate, and find the loss scale


@dataclass(frozen=True)
class Job:
    """What all modes of a comparison share."""

    config: Config
    data: Path
    init: Path | None
    directory: Path
    threads: int

    def mode(self, precision: str) -> Config:
        values = self.config.model_dump(mode="json", exclude_unset=True) | {"precision": precision}
        return Config.model_validate(values)


def training(job: Job, precision: str) -> dict[str, Any]:
    """The whole training of one mode: {"log": lines, "failure": None or {"kind", "reason"}}."""
    folder = job.directory / f"{precision}-{fingerprint(job, precision, None)}"
    return outcome(job, precision, folder, None)


def clocked(job: Job, precision: str, number: int, steps: int) -> dict[str, Any]:
    """Round `number` of the timing of one mode, as `training`; `steps` are counted after the warm-up."""
    name = f"{precision}-{fingerprint(job, precision, steps)}-{number}"
    return outcome(job, precision, job.directory / "timing" / name, WARM_UP + steps)


def outcome(job: Job, precision: str, folder: Path, clock: int | None) -> dict[str, Any]:
    result = folder / RESULT
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8"))
    if clock is not None:
        shutil.rmtree(folder, ignore_errors=True)  # a round is not gone on with
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    specification = {
        "config": job.mode(precision).model_dump(mode="json", exclude_unset=True),
        "data": str(job.data),
        "init": None if job.init is None else str(job.init),
        "directory": str(folder),
        "threads": job.threads,
        "clock": clock,
    }
    file = folder / "specification.json"
    file.write_text(json.dumps(specification, indent=1), encoding="utf-8")
    words = folder / "words.txt" if clock else None
    code = finished([sys.executable, "-m", "edgemt.training.compare.worker", str(file)], words)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    found = {"log": read_log(folder / LOG), "failure": failure(folder, code)}
    if found["failure"] is not None and not diverged(found["log"]):
        if code == UsageError.exit_code:  # true of every mode
            raise UsageError(found["failure"]["reason"])
        return found  # not kept: there may be more room next time
    text = json.dumps(found)
    with replacing(result, len(text)) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return found


def diverged(log: list[dict[str, Any]]) -> str | None:
    """Why the training of this log had diverged at its end; None if it had not, or had recovered."""
    last = next((line for line in reversed(log) if line.get("event") in ("diverged", "recovered")), {})
    return last.get("reason")


def failure(folder: Path, code: int) -> dict[str, str] | None:
    if code == 0:
        return None
    if (folder / FAILURE).exists():
        return json.loads((folder / FAILURE).read_text(encoding="utf-8"))
    if code == -signal.SIGKILL:  # what the kernel does to a process when there is no memory left
        return {"kind": "out of memory", "reason": "the process was killed, as it is when memory runs out"}
    return {"kind": "failed", "reason": f"the process ended with code {code}, for a reason we do not know"}


def finished(command: list[str], words: Path | None) -> int:
    """The exit code of a process, whose standard error goes into the file `words` if that is given.

    If we are interrupted, the process is asked to save and waited for first.
    """
    with ExitStack() as stack:
        error = stack.enter_context(words.open("wb")) if words else None
        process = stack.enter_context(subprocess.Popen(command, stderr=error))
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


def fingerprint(job: Job, precision: str, clock: int | None) -> str:
    """Eight digits that stand for everything that decides the outcome of a mode."""
    inputs = {
        "config": job.mode(precision).model_dump(mode="json"),
        "data": [digest(path) for path in sorted(job.data.glob("*.tsv*"))],
        "init": None if job.init is None else digest(job.init),
        "threads": job.threads,
        "torch": torch.__version__,
        "clock": clock,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:8]


@cache
def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names."""
    sha = hashlib.sha256()
    try:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                sha.update(f"{file.relative_to(path)}\n".encode())
                with file.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        sha.update(block)
    except OSError as error:
        raise EdgemtError(f"{error.filename} cannot be read: {error.strerror}") from error
    return sha.hexdigest()
