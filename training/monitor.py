"""What is written, shown and decided after every step of a run: the log, the bar, the culprit, divergence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgemt.errors import EdgemtError
from edgemt.training.config import Config
from edgemt.training.distributed import World
from edgemt.training.divergence import Watcher
from edgemt.training.health import Culprit, Watch, locate
from edgemt.training.log import Log, forget_peak, memory_mb
from edgemt.training.precision import Outcome, caution, caution_for_batch
from edgemt.training.progress import Bar


class Monitor:
    """Used as a context around the steps after `step`. Only the first process writes and speaks."""

    def __init__(
        self, config: Config, directory: Path, model: nn.Module, world: World, watcher: Watcher, step: int
    ) -> None:
        self.config, self.directory, self.model = config, directory, model
        self.world, self.watcher, self.begun_at = world, watcher, step
        self.open = ExitStack()
        self.log: Log | None = None
        self.bar: Bar | None = None
        self.watch: Watch | None = None
        self.row: Culprit | None = None  # of the first of the steps that were just skipped, one after another
        self.cautioned = False  # about a small batch

    def __enter__(self) -> Monitor:
        if self.world.first:
            self.log = Log(self.directory, self.begun_at)
            self.open.callback(self.log.close)
            self.bar = Bar(self.config.schedule.steps, self.begun_at)
            self.open.callback(self.bar.close)
        if self.config.watch_activations:
            self.watch = self.open.enter_context(Watch(self.model))
        forget_peak(self.config.device)
        self.event(
            self.begun_at,
            "started",
            precision=self.config.precision,
            device=self.config.device,
            processes=self.world.size,
            parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            memory_mb=memory_mb(self.config.device),
        )
        if text := caution(self.config.precision):
            self.say(text)
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def event(self, step: int, name: str, **values: Any) -> None:
        if self.log is not None:
            self.log.event(step, name, **values)

    def say(self, text: str) -> None:
        """A line for the user, above the bar."""
        if self.bar is not None:
            self.bar.say(text)

    def after_step(
        self,
        step: int,
        last_step: int,
        outcome: Outcome,
        skipped: tuple[int, int],
        replays: Iterable[Callable[[], Tensor]],
        **line: Any,
    ) -> None:
        """Log and show a step, and name what was not finite in it.

        `skipped`: steps in all, and in a row up to this one. `replays` compute the losses of this process's
        batches again (see health.locate); a skipped step has left the weights as they were. `line` has loss,
        rate, tokens, sentences, seconds, tokens_per_second, epoch. Raises EdgemtError if nothing has been
        finite for too long, or if the run has diverged and is to stop then.
        """
        line |= {
            "gradient_norm": outcome.norm,
            "scale": outcome.scale,
            "skipped": skipped[0],
            "memory_mb": memory_mb(self.config.device),
        }
        sentences = line.pop("sentences")
        if self.log is not None:
            self.log.step(step, **line)
        if self.bar is not None:
            shown = {key: line[key] for key in ("scale", "skipped", "tokens_per_second", "memory_mb")}
            self.bar.update(step, last_step, loss=None if outcome.skipped else line["loss"], **shown)
        if not self.cautioned and (text := caution_for_batch(self.config.precision, sentences)):
            self.cautioned = True
            self.say(f"step {step}: {text}")
        culprit = self.culprit(outcome, replays)
        if culprit is not None or outcome.skipped:
            self.name(step, outcome, skipped[1], culprit)
        self.judge(step, line["loss"], outcome, skipped[1])

    def culprit(self, outcome: Outcome, replays: Iterable[Callable[[], Tensor]]) -> Culprit | None:
        """The first bad tensor of the step, in whichever process it was."""
        found = self.watch.take() if self.watch else None
        if outcome.skipped and found is None:
            found = locate(self.model, replays, outcome.scale)
        if outcome.skipped or self.watch:
            found = next((item for item in self.world.gather(found) if item is not None), None)
        return found

    def name(self, step: int, outcome: Outcome, in_row: int, culprit: Culprit | None) -> None:
        sentence = str(culprit or "the gradient norm, though every tensor is finite")
        facts = culprit.to_json() if culprit else {"phase": "norm", "module": "", "tensor": "gradient norm"}
        self.event(step, "not_finite", **facts, sentence=sentence, step_skipped=outcome.skipped)
        if in_row <= 1:  # the next ones of a row have the same cause
            self.row = culprit
            self.say(f"step {step}{' skipped' if outcome.skipped else ''}: not finite: {sentence}")

    def judge(self, step: int, loss: float, outcome: Outcome, in_row: int) -> None:
        had_diverged = self.watcher.diverged
        reason = self.watcher.update(step, None if outcome.skipped else loss, in_row)
        if reason is not None:
            self.event(step, "diverged", reason=reason)
            self.say(f"step {step}: diverged: {reason}")
            if in_row >= self.config.max_skipped or self.config.stop_on_divergence:
                first = f"; first not finite: {self.row}" if self.row and outcome.skipped else ""
                raise EdgemtError(
                    f"step {step}: {reason}{first}; lower the rate, or use bf16 or fp32 (the last saved "
                    "state and the kept checkpoints are as they were)"
                )
        elif had_diverged and not self.watcher.diverged:
            self.event(step, "recovered")
            self.say(f"step {step}: the loss has come down again")
