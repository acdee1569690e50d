"""The log of a run, log.jsonl: one JSON object a line, strict JSON (what is not finite is null).

Every step has a line: `time` (s since 1970), `step`, `epoch`, `loss` (nats a target token, with label
smoothing; null if not finite), `rate`, `gradient_norm` (after unscaling, before clipping), `scale` (the loss
scale of this step; 1 without scaling), `skipped` (steps skipped so far), `tokens` (target tokens so far),
`seconds` (of this step: forward, backward, update), `tokens_per_second`, `memory_mb` (the most
since the first step: of torch's allocator on a GPU, of the process on a CPU).
Between them are events, which have the key `event`:

    started     parameters, memory_mb before the first step, device
    not_finite  the culprit (health.Culprit) and whether the step was skipped
    diverged    reason;  recovered  (divergence.py)
    evaluated   scores by "corpus xx-yy", their mean
    saved, kept, stopped, finished
"""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from edgemt.bench.process import peak_rss
from edgemt.errors import EdgemtError

LOG = "log.jsonl"


class Log:
    """Appends to `directory`/log.jsonl what happens after `step`, the last step of the state gone on from.

    Lines of later steps, written before a crash and about to be written again, are dropped first: the curve
    of a run that was killed and resumed is that of an unbroken one.
    """

    def __init__(self, directory: Path, step: int = 0) -> None:
        self.path = directory / LOG
        try:
            forget(self.path, step)
            self.file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise self.unwritable(error) from error

    def step(self, step: int, **values: Any) -> None:
        self._write({"step": step, **values})

    def event(self, step: int, event: str, **values: Any) -> None:
        self._write({"step": step, "event": event, **values})

    def close(self) -> None:
        self.file.close()

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self.file.write(
                json.dumps(strict({"time": round(time.time(), 2), **line}), allow_nan=False) + "\n"
            )
            self.file.flush()
        except OSError as error:
            raise self.unwritable(error) from error

    def unwritable(self, error: OSError) -> EdgemtError:
        cure = "make room and start the same command again: it goes on from the last saved state"
        return EdgemtError(f"{self.path} cannot be written ({error.strerror}); {cure}")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a line cut off by a crash ends it."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def forget(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`; the file is replaced whole or not at all."""
    if not path.exists():
        return
    kept = [line for line in read_log(path) if line["step"] <= step]
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def strict(value: Any) -> Any:
    """The same with None for every number that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value


def forget_peak(device: str) -> None:
    """From here on `memory_mb` is of what happens from here on: reading the data may have held more."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # where the kernel does not allow it, the peak stays that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def memory_mb(device: str) -> float | None:
    """The most memory since `forget_peak`, in MB (10^6 bytes): of torch on a GPU, of the process on a CPU."""
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    resident = peak_rss()
    return None if resident is None else round(resident / 1e6, 1)
