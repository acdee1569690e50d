"""What a run keeps beside its state: checkpoints by age and by score, and when it is time for one."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from edgemt.training.checkpoint import RECORD
from edgemt.training.config import Keep

CHECKPOINTS = "checkpoints"
NAME = re.compile(r"step-(\d+)")
BLEU = "dev_bleu"  # in a checkpoint's record: what it is compared by


class Due:
    """Is it time again? After so many minutes, and at every so many steps; 0 for never."""

    def __init__(self, minutes: float, steps: int) -> None:
        self.seconds, self.steps = minutes * 60, steps
        self.last = time.monotonic()

    def now(self, step: int) -> bool:
        late = self.seconds > 0 and time.monotonic() - self.last >= self.seconds
        return late or (self.steps > 0 and step % self.steps == 0)

    def done(self) -> None:
        self.last = time.monotonic()


class Kept:
    """The folders `directory`/step-N: the newest `last` and the `best` of the highest mean dev BLEU.

    What is there is read from the folders themselves, so nothing has to agree with a run's state.
    """

    def __init__(self, directory: Path, settings: Keep) -> None:
        self.directory = directory
        self.settings = settings

    def add(self, step: int, bleu: float | None, write: Callable[[Path], None]) -> bool:
        """Write the checkpoint of `step` if it is to be kept, then remove those that no longer are."""
        there = {**self.scores(), step: bleu}
        chosen = self.chosen(there)
        if step in chosen:
            write(self.directory / f"step-{step}")
        for other in there.keys() - chosen - {step}:
            shutil.rmtree(self.directory / f"step-{other}")
        return step in chosen

    def chosen(self, scores: dict[int, float | None]) -> set[int]:
        newest = sorted(scores)[len(scores) - min(len(scores), self.settings.last) :]
        scored = [(bleu, step) for step, bleu in scores.items() if bleu is not None]
        best = [step for _, step in sorted(scored, reverse=True)[: self.settings.best]]
        return {*newest, *best}

    def best(self) -> Path | None:
        """The kept checkpoint of the highest score."""
        scored = [(bleu, step) for step, bleu in self.scores().items() if bleu is not None]
        return self.directory / f"step-{max(scored)[1]}" if scored else None

    def scores(self) -> dict[int, float | None]:
        """Mean dev BLEU of each checkpoint that is there, by its step; None if it was not evaluated."""
        found = {}
        for folder in self.directory.glob("step-*"):
            if (match := NAME.fullmatch(folder.name)) and (folder / RECORD).is_file():
                record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
                found[int(match.group(1))] = record.get(BLEU)
        return found
