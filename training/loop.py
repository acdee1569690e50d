"""A training run: from a start or a saved state to a checkpoint; stoppable and resumable, bit for bit."""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import torch

from edgemt.errors import EdgemtError, UsageError
from edgemt.training.average import Average
from edgemt.training.checkpoint import write_checkpoint
from edgemt.training.config import Config
from edgemt.training.data import TrainingData, read_pairs
from edgemt.training.evaluate import evaluate
from edgemt.training.model import new_model, start_from_checkpoint, start_from_embedding, summed_loss
from edgemt.training.optimizers import build_optimizers, rate_factor, set_rates
from edgemt.training.precision import Stepper, autocast
from edgemt.training.state import load_state, save_state
from edgemt.training.vocabulary import Vocabulary

STATE_FORM = 1
FINISHED = "finished"  # an empty file beside the state: the run has cooled down to its end


class Run:
    """`data` holds train.tsv, dev.tsv and tokenizer/; `directory` gets the state and the log.

    A state found in `directory` is resumed; a new run starts from `init` (a checkpoint directory, or a file
    with an embedding) or from random weights.
    """

    def __init__(self, config: Config, data: Path, directory: Path, init: Path | None = None) -> None:
        self.config = config
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.vocabulary = Vocabulary(data / "tokenizer")
        pairs = read_pairs(data / "train.tsv")
        self.dev = read_pairs(data / "dev.tsv")
        self.data = TrainingData(
            pairs,
            self.vocabulary,
            config.data.weights,
            config.data.batch_tokens,
            config.data.max_length,
            config.seed,
        )
        self.model = new_model(config.model, self.vocabulary.size, self.data.tags)
        state = load_state(directory)
        if init is not None and state is None:
            if not init.exists():
                raise UsageError(f"nothing to start from at {init}")
            if init.is_dir():
                start_from_checkpoint(self.model, init, self.vocabulary.directory)
            else:
                start_from_embedding(self.model, init)
        self.model.to(  # pyright: ignore[reportCallIssue] (transformers wraps it)
            device=config.device, dtype=torch.float16 if config.precision == "fp16-pure" else torch.float32
        )
        self.model.train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = build_optimizers(self.model, config.optimizer)
        self.peaks = [config.optimizer.rate, config.optimizer.muon_rate][: len(self.optimizers)]
        self.stepper = Stepper(config, self.parameters, self.optimizers)
        self.average = Average(self.model, config.ema_decay)
        self.step = 0  # of the last finished step
        self.epoch = 0
        self.position = 0  # batches of the epoch that are done
        self.tokens = 0  # target tokens seen
        self.early_cooldown: int | None = None  # the step at which the final decay was asked for
        self.scores: dict[str, Any] = {}
        self.stopping = False
        if state is not None:
            self.restore(state)

    def state(self) -> dict[str, Any]:
        return {
            "form": STATE_FORM,
            "config": self.config.must_not_change(),
            "model": {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad},
            "average": self.average.weights,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "stepper": self.stepper.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self.config.device == "cuda" else [],
            "progress": {
                name: getattr(self, name)
                for name in ("step", "epoch", "position", "tokens", "early_cooldown", "scores")
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state["form"] != STATE_FORM:
            raise EdgemtError(f"the state in {self.directory} was written by another version of edgemt")
        ours = self.config.must_not_change()
        changed = [key for key, value in ours.items() if state["config"].get(key) != value]
        if changed:
            raise UsageError(
                f"{changed[0]} differs from the run in {self.directory}: change it back, or use a new folder"
            )
        self.model.load_state_dict(state["model"], strict=False)
        self.average.weights = {
            name: tensor.to(self.config.device) for name, tensor in state["average"].items()
        }
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stepper.load_state_dict(state["stepper"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        for name, value in state["progress"].items():
            setattr(self, name, value)

    def cool_down_now(self) -> None:
        """Begin the final decay at this step, unless it has begun; the run ends with it."""
        if self.step < self.cooldown_from:
            self.early_cooldown = self.step

    @property
    def cooldown_from(self) -> int:
        """The step at which the rate begins to fall."""
        schedule = self.config.schedule
        return schedule.steps - schedule.cooldown if self.early_cooldown is None else self.early_cooldown

    @property
    def last_step(self) -> int:
        return self.cooldown_from + self.config.schedule.cooldown

    def train(self) -> None:
        """Train until the last step, SIGTERM or SIGINT; the state is saved either way."""
        handlers = {
            number: signal.signal(number, self.ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            with (self.directory / "log.jsonl").open("a", encoding="utf-8") as self.log_file:
                self.loop()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def ask_to_stop(self, number: int, frame: object) -> None:
        self.stopping = True

    def loop(self) -> None:
        every = self.config.every
        saved = evaluated = time.monotonic()
        begun, losses, tokens = time.monotonic(), 0.0, 0  # since the last log line
        batches = self.data.batches(self.epoch, self.position)
        while self.step < self.last_step and not self.stopping:
            batch = next(batches, None)
            if batch is None:
                self.epoch, self.position = self.epoch + 1, 0
                batches = self.data.batches(self.epoch, 0)
                continue
            self.step += 1
            factor = rate_factor(self.step, self.config.schedule, self.cooldown_from)
            set_rates(self.optimizers, self.peaks, factor)
            with autocast(self.config):
                summed = summed_loss(self.model, batch.to(self.config.device), self.config.label_smoothing)
            norm = self.stepper.step(summed / batch.target_tokens, self.step)
            self.average.update(self.step)
            self.position += 1
            self.tokens += batch.target_tokens
            if self.stepper.skipped_in_row == 0:
                losses += float(summed.detach())
                tokens += batch.target_tokens
            now = time.monotonic()
            if self.step % every.log_steps == 0:
                self.log(
                    loss=losses / tokens if tokens else None,  # all skipped
                    rate=self.peaks[0] * factor,
                    gradient_norm=norm if math.isfinite(norm) else None,
                    scale=self.stepper.scaler.get_scale(),
                    skipped=self.stepper.skipped,
                    tokens_per_second=round(tokens / (now - begun)),
                )
                begun, losses, tokens = now, 0.0, 0
            if now - evaluated >= every.evaluate_minutes * 60:
                self.evaluate()
                evaluated = begun = time.monotonic()
                losses, tokens = 0.0, 0
            if now - saved >= every.save_minutes * 60:
                save_state(self.directory, self.state())
                saved = time.monotonic()
        finished = self.step >= self.last_step
        if finished:
            self.evaluate()
        save_state(self.directory, self.state())
        if finished:
            (self.directory / FINISHED).touch()

    def evaluate(self) -> None:
        """Score the averaged weights on dev."""
        if self.config.evaluate_sentences:
            with self.average.in_place(self.model):
                self.scores = evaluate(self.model, self.vocabulary, self.dev, self.config.evaluate_sentences)
            self.log(scores=self.scores)

    def log(self, **values: Any) -> None:
        line = {
            "time": round(time.time(), 1),
            "step": self.step,
            "epoch": self.epoch,
            "tokens": self.tokens,
            **values,
        }
        self.log_file.write(json.dumps(line) + "\n")
        self.log_file.flush()

    def write_checkpoint(self, directory: Path) -> None:
        """The averaged weights, as a checkpoint directory."""
        record = {
            "precision": self.config.precision,
            "steps": self.step,
            "skipped_steps": self.stepper.skipped,
            "target_tokens": self.tokens,
            "loss_scale_changes": self.stepper.scales,
            "dev_scores": self.scores,
            "config": self.config.model_dump(mode="json"),
        }
        with self.average.in_place(self.model):
            write_checkpoint(directory, self.model, self.vocabulary, record)
