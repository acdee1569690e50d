"""A training run: from a start or a saved state to a checkpoint; stoppable and resumable, bit for bit."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemt.errors import UsageError
from edgemt.training.average import Average
from edgemt.training.checkpoint import base_of, copy_checkpoint, write_checkpoint
from edgemt.training.config import Config
from edgemt.training.data import Batches, read_data
from edgemt.training.distributed import World
from edgemt.training.divergence import Watcher
from edgemt.training.evaluate import Scores, evaluate, mean_bleu
from edgemt.training.families import Origin, make_family
from edgemt.training.files import replacing
from edgemt.training.keep import BLEU, CHECKPOINTS, Due, Kept
from edgemt.training.monitor import Monitor
from edgemt.training.objective import Objective, compiled, recompute_activations, seed_micro_batch
from edgemt.training.optimizers import build_optimizers, rate_factor, set_rates
from edgemt.training.precision import Stepper, autocast
from edgemt.training.state import check_model, check_settings, load_state, save_state

FINISHED = "finished"  # an empty file beside the state: the run has come to its end
MODEL = "model"  # a folder beside the state: shape and tokenizer, from which the run is resumed
PROGRESS = (  # of Run, kept in the state
    "step", "epoch", "position", "tokens", "early_cooldown", "scores", "scored", "best_bleu", "without_gain",
    "base",
)  # fmt: skip


class Run:
    """`data` holds train.tsv and dev.tsv; `directory` gets the state and the log.

    A state found in `directory` is resumed; a new run starts from `init` (a checkpoint, or what else the
    family takes) or from random weights.
    """

    def __init__(
        self,
        config: Config,
        data: Path | None,
        directory: Path,
        init: Path | None = None,
        world: World | None = None,
    ) -> None:
        self.config, self.data, self.directory = config, data, directory
        self.world = world or World(config.device)
        if config.data.accumulate % self.world.size:
            raise UsageError(
                f"data.accumulate = {config.data.accumulate} cannot be shared by {self.world.size} processes:"
                f" make it a multiple of {self.world.size}"
            )
        state = load_state(directory)
        if state is not None:
            check_settings(directory, state, config.must_not_change())
        torch.manual_seed(config.seed)
        self.family = make_family(config, Origin(data, init, directory / MODEL if state else None))
        self.model = self.family.model
        weights = torch.float16 if config.precision == "fp16-pure" else torch.float32
        self.model.to(device=config.device, dtype=weights)
        self.model.train()
        if config.gradient_checkpointing:
            recompute_activations(self.model)
        self.plain = Objective(self.family)
        objective = compiled(self.plain, config.device) if config.compile else self.plain
        self.objective = self.world.wrap(objective)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = build_optimizers(self.model, config.optimizer)
        self.peaks = [config.optimizer.rate, config.optimizer.muon_rate][: len(self.optimizers)]
        self.stepper = Stepper(config, self.parameters, self.optimizers)
        self.average = Average(self.model, config.ema_decay if self.world.first else 0)
        self.watcher = Watcher(config.max_skipped)
        self.kept = Kept(directory / CHECKPOINTS, config.keep)
        self.step = 0  # the last finished step
        self.epoch = 0
        self.position = 0  # batches of the epoch that are done
        self.tokens = 0  # target tokens seen
        self.early_cooldown: int | None = None  # the step at which the final decay was asked for
        self.scores: Scores = {}
        self.scored = 0  # the step that `scores` are of
        self.best_bleu = -1.0
        self.without_gain = 0  # evaluations since `best_bleu`
        self.base: dict[str, Any] = {} if state else base_of(init)
        self.stopping = False
        if state is not None:
            self.restore(state)

    def state(self) -> dict[str, Any]:
        frozen = {n for n, p in self.model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {
            "config": self.config.must_not_change(),
            "model": {name: t for name, t in self.model.state_dict().items() if name not in frozen},
            "average": self.average.weights,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "stepper": self.stepper.state_dict(),
            "watcher": self.watcher.state_dict(),
            "progress": {name: getattr(self, name) for name in PROGRESS},
        }

    def restore(self, state: dict[str, Any]) -> None:
        check_model(self.directory, state, self.model)
        self.model.load_state_dict(state["model"], strict=False)
        if self.world.first:
            self.average.weights = {n: t.to(self.config.device) for n, t in state["average"].items()}
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stepper.load_state_dict(state["stepper"])
        self.watcher.load_state_dict(state["watcher"])
        for name in PROGRESS:
            setattr(self, name, state["progress"][name])

    def cool_down_now(self) -> None:
        """Begin the final decay at this step, unless it has begun; the run ends with it."""
        if self.step < self.cooldown_from:
            self.early_cooldown = self.step

    @property
    def cooldown_from(self) -> int:
        """The step at which the last decay begins."""
        schedule = self.config.schedule
        return schedule.steps - schedule.cooldown if self.early_cooldown is None else self.early_cooldown

    @property
    def last_step(self) -> int:
        return self.cooldown_from + self.config.schedule.cooldown

    @property
    def finished(self) -> bool:
        patience = self.config.keep.patience
        return self.step >= self.last_step or 0 < patience <= self.without_gain

    def train(self) -> None:
        """Train to the end, SIGTERM or SIGINT; the state is saved either way."""
        if self.data is None:
            raise UsageError("no --data: give the folder with train.tsv and dev.tsv")
        pairs, self.dev = read_data(self.data, self.config, self.world.say)
        self.examples = self.family.examples(pairs, self.config.data, self.config.seed)
        self.batches = Batches(self.examples, self.config.data.batch_tokens, self.config.seed)
        self.batches.epoch, self.batches.position = self.epoch, self.position
        if self.world.first and not self.step:
            with replacing(self.directory / MODEL, 0) as temporary:
                temporary.mkdir()
                self.family.write_files(temporary)
        with ExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT):
                stack.callback(signal.signal, number, signal.signal(number, self.ask_to_stop))
            self.monitor = stack.enter_context(
                Monitor(self.config, self.directory, self.model, self.world, self.watcher, self.step)
            )
            self.loop()

    def ask_to_stop(self, number: int, frame: object) -> None:
        self.stopping = True

    def loop(self) -> None:
        every = self.config.every
        save, evaluation = (
            Due(every.save_minutes, every.save_steps),
            Due(every.evaluate_minutes, every.evaluate_steps),
        )
        stop = False
        while not (stop or self.finished):
            self.one_step()
            # All processes do the same: what one of them wants, or the clock of one says, holds for all.
            stop, save_now, evaluate_now = self.world.agree(
                [self.stopping, save.now(self.step), evaluation.now(self.step)]
            )
            if evaluate_now:
                self.evaluate()
                evaluation.done()
            if save_now:
                self.save()
                save.done()
        if self.step >= self.last_step and self.scored < self.step:
            self.evaluate()
        self.save()
        self.monitor.event(self.step, "finished" if self.finished else "stopped")
        if self.finished and self.world.first:
            (self.directory / FINISHED).touch()

    def one_step(self) -> None:
        """One optimizer step from `data.accumulate` micro-batches; each process does its share of them."""
        begun = time.monotonic()
        self.step += 1
        rate = rate_factor(self.step, self.config.schedule, self.cooldown_from)
        set_rates(self.optimizers, self.peaks, rate)
        chosen = self.batches.take(self.config.data.accumulate)
        target_tokens = sum(int(self.examples.target_lengths[batch].sum()) for batch in chosen)
        mine = range(self.world.rank, len(chosen), self.world.size)
        summed = torch.zeros((), dtype=torch.float64, device=self.config.device)
        for index in mine:
            with self.world.gathering(self.objective, last=index == mine[-1]):
                loss = self.micro_batch(self.objective, chosen[index], index, target_tokens)
                self.stepper.backward(loss)
            summed += loss.detach()
        (mean_loss,) = self.world.sum([float(summed)])
        outcome = self.stepper.step(self.step, mean_loss)
        self.average.update(self.step)
        self.epoch, self.position = self.batches.epoch, self.batches.position
        self.tokens += target_tokens
        seconds = time.monotonic() - begun
        self.monitor.after_step(
            self.step,
            self.last_step,
            outcome,
            (self.stepper.skipped, self.stepper.skipped_in_row),
            [partial(self.micro_batch, self.plain, chosen[i], i, target_tokens) for i in mine],
            epoch=self.epoch,
            loss=mean_loss,
            rate=self.peaks[0] * rate,
            tokens=self.tokens,
            sentences=sum(map(len, chosen)),
            seconds=round(seconds, 4),
            tokens_per_second=round(target_tokens / seconds, 1),
        )

    def micro_batch(self, objective: nn.Module, chosen: np.ndarray, index: int, target_tokens: int) -> Tensor:
        """The share of micro-batch `index` in the step's loss, a mean over `target_tokens`.

        The same whenever it is done again in this step.
        """
        seed_micro_batch(self.config.seed, self.step, index)
        batch = self.examples.batch(chosen).to(self.config.device)
        with autocast(self.config):
            return objective(batch) / target_tokens

    def save(self) -> None:
        if self.world.first:
            save_state(self.directory, self.state())
            self.monitor.event(self.step, "saved")

    def evaluate(self) -> None:
        """Score the averaged weights on dev, keep a checkpoint, and count how long nothing was gained."""
        bleu = None
        if self.world.first:
            with self.average.in_place(self.model):
                if sentences := self.config.evaluate_sentences:
                    self.scores = evaluate(self.family, self.dev, sentences, self.config.data.directions)
                    bleu = mean_bleu(self.scores)
                    self.monitor.event(self.step, "evaluated", scores=self.scores, mean=bleu)
                record = self.record() | ({} if bleu is None else {BLEU: bleu})
                if self.kept.add(
                    self.step, bleu, partial(write_checkpoint, family=self.family, record=record)
                ):
                    self.monitor.event(self.step, "kept")
        if self.config.evaluate_sentences:
            (bleu,) = self.world.sum([bleu or 0.0])  # the other processes add nothing
            self.scored = self.step
            self.without_gain = 0 if bleu > self.best_bleu else self.without_gain + 1
            self.best_bleu = max(bleu, self.best_bleu)

    def record(self) -> dict[str, Any]:
        """How the weights of now came about: a checkpoint's edgemt.json."""
        return {
            **self.base,
            "precision": self.config.precision,
            "steps": self.step,
            "skipped_steps": self.stepper.skipped,
            "target_tokens": self.tokens,
            "loss_scale": self.stepper.scaler.get_scale(),
            "loss_scale_changes": self.stepper.scales,
            "dev_scores": self.scores,
            "config": self.config.model_dump(mode="json"),
        }

    def write_checkpoint(self, directory: Path, kept: Path | None = None) -> int:
        """The averaged weights of now, or a kept checkpoint, as a directory; returns their step."""
        if kept:
            return copy_checkpoint(kept, directory)
        with self.average.in_place(self.model):
            write_checkpoint(directory, self.family, self.record())
        return self.step
