"""One precision's training, or a few clocked steps of it, as a process of its own:

    python -m edgemt.training.compare.worker SPECIFICATION.json

The specification has config, data, init, directory, threads and clock (steps; null: the whole training).
What happened is in `directory`: log.jsonl, and failure.json if it failed. It is a process of its own so that
memory another precision has held, or kernels it has loaded, cannot count.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from edgemt.errors import EdgemtError
from edgemt.training.config import Config
from edgemt.training.distributed import joined
from edgemt.training.loop import Run

FAILURE = "failure.json"
INTERRUPTED = 130  # exit code


class Clock(Run):
    """The first steps of a run, each in the log with its seconds; nothing is evaluated or saved."""

    steps: int

    def loop(self) -> None:
        while self.step < self.steps and not self.stopping:
            self.one_step()


def work(specification: dict[str, Any]) -> int:
    torch.set_num_threads(specification["threads"])
    config = Config.model_validate(specification["config"])
    data, directory = Path(specification["data"]), Path(specification["directory"])
    init = None if specification["init"] is None else Path(specification["init"])
    try:
        with joined(config.device) as world:
            if specification["clock"] is None:
                run = Run(config, data, directory, init, world)
            else:
                run = Clock(config, data, directory, init, world)
                run.steps = specification["clock"]
            run.train()
        return INTERRUPTED if run.stopping else 0
    except (MemoryError, RuntimeError) as error:
        if not no_memory(error):
            raise
        failure, code = ("out of memory", str(error).partition("\n")[0] or "no memory left"), 1
    except EdgemtError as error:
        failure, code = ("failed", str(error)), error.exit_code
    (directory / FAILURE).write_text(json.dumps(dict(zip(("kind", "reason"), failure, strict=True))))
    return code


def no_memory(error: MemoryError | RuntimeError) -> bool:
    """Was there too little memory? On a CPU torch says so in the words of a RuntimeError only."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


if __name__ == "__main__":
    sys.exit(work(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
