"""A training run: from a start or a saved state to a checkpoint; stoppable and resumable, bit for bit."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemt.errors import UsageError
from edgemt.training.average import Average
from edgemt.training.checkpoint import write_checkpoint
from edgemt.training.config import Config
from edgemt.training.data import Batch, Batches, absent, find_pairs, read_pairs
from edgemt.training.distributed import World
from edgemt.training.evaluate import Scores, evaluate
from edgemt.training.families import Family, Origin, make_family
from edgemt.training.files import replacing
from edgemt.training.log import Log
from edgemt.training.optimizers import build_optimizers, rate_factor, set_rates
from edgemt.training.precision import Stepper, autocast
from edgemt.training.state import load_state, save_state

FINISHED = "finished"  # an empty file beside the state: the run has cooled down to its end
MODEL = "model"  # a folder beside the state: shape and tokenizer, from which the run is resumed
PROGRESS = ("step", "epoch", "position", "tokens", "early_cooldown", "scores")  # of Run, kept in the state


class Objective(nn.Module):
    """A family's loss as a module, which torch can compile and wrap."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.model = family.model
        self.family = family

    def forward(self, batch: Batch) -> Tensor:
        return self.family.summed_loss(self.model, batch)


class Run:
    """`data` holds train.tsv and dev.tsv; `directory` gets the state and the log.

    A state found in `directory` is resumed; a new run starts from `init` (a checkpoint, or what else the family
    takes) or from random weights.
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
        self.world = world or World(device=config.device)
        if config.data.accumulate % self.world.size:
            raise UsageError(
                f"data.accumulate = {config.data.accumulate} cannot be shared by {self.world.size} processes: "
                f"make it a multiple of {self.world.size}"
            )
        if init is not None and not init.exists():
            raise UsageError(f"nothing to start from at {init}")
        state = load_state(directory)
        torch.manual_seed(config.seed)
        self.family = make_family(config, Origin(data, init, directory / MODEL if state else None))
        self.model = self.family.model
        self.model.to(
            device=self.world.device,
            dtype=torch.float16 if config.precision == "fp16-pure" else torch.float32,
        )
        self.model.train()
        self.objective = self.world.wrap(Objective(self.family))
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = build_optimizers(self.model, config.optimizer)
        self.peaks = [config.optimizer.rate, config.optimizer.muon_rate][: len(self.optimizers)]
        self.stepper = Stepper(config, self.parameters, self.optimizers)
        self.average = Average(self.model, config.ema_decay if self.world.first else 0)
        self.step = 0  # of the last finished step
        self.epoch = 0
        self.position = 0  # batches of the epoch that are done
        self.tokens = 0  # target tokens seen
        self.early_cooldown: int | None = None  # the step at which the final decay was asked for
        self.scores: Scores = {}
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
            "progress": {name: getattr(self, name) for name in PROGRESS},
        }

    def restore(self, state: dict[str, Any]) -> None:
        ours = self.config.must_not_change()
        changed = [key for key, value in ours.items() if state["config"].get(key) != value]
        if changed:
            raise UsageError(
                f"{changed[0]} differs from the run in {self.directory}: change it back, or use a new folder"
            )
        shapes = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        for name, tensor in state["model"].items():
            if shapes.get(name) != tensor.shape:
                raise UsageError(
                    f"the state in {self.directory} is of another model than the folder {MODEL} beside it: {name} is "
                    f"{list(tensor.shape)}, not {list(shapes.get(name, []))}; put the right one there, or use a new "
                    "folder"
                )
        self.model.load_state_dict(state["model"], strict=False)
        if self.world.first:
            self.average.weights = {n: t.to(self.world.device) for n, t in state["average"].items()}
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stepper.load_state_dict(state["stepper"])
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

    def train(self) -> None:
        """Train until the last step, SIGTERM or SIGINT; the state is saved either way."""
        if self.data is None:
            raise UsageError("no --data: give the folder with train.tsv and dev.tsv")
        pairs, self.dev = (read_pairs(find_pairs(self.data, name)) for name in ("train", "dev"))
        if missing := absent(pairs, self.config.data.weights):
            self.world.say(f"train.tsv has no pairs of {', '.join(missing)}")
        self.examples = self.family.examples(pairs, self.config.data, self.config.seed)
        self.batches = Batches(self.examples, self.config.data.batch_tokens, self.config.seed)
        self.batches.epoch, self.batches.position = self.epoch, self.position
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.step == 0 and self.world.first:
            with replacing(self.directory / MODEL, 0) as temporary:
                temporary.mkdir()
                self.family.write_files(temporary)
        handlers = {
            number: signal.signal(number, self.ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)
        }
        self.log = Log(self.directory, self.step)
        try:
            self.loop()
        finally:
            self.log.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def ask_to_stop(self, number: int, frame: object) -> None:
        self.stopping = True

    def loop(self) -> None:
        every = self.config.every
        saved = evaluated = time.monotonic()
        while self.step < self.last_step and not self.stopping:
            self.one_step()
            now = time.monotonic()
            if now - evaluated >= every.evaluate_minutes * 60:
                self.evaluate()
                evaluated = time.monotonic()
            if now - saved >= every.save_minutes * 60:
                save_state(self.directory, self.state())
                saved = time.monotonic()
        finished = self.step >= self.last_step
        if finished:
            self.evaluate()
        save_state(self.directory, self.state())
        if finished:
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
        summed = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for index in mine:
            with self.world.gathering(self.objective, last=index == mine[-1]):
                nats = self.nats(self.objective, chosen, index)
                self.stepper.backward(nats / target_tokens)
            summed += nats.detach()
        (summed_everywhere,) = self.world.sum([float(summed)])
        loss = summed_everywhere / target_tokens
        outcome = self.stepper.step(self.step, loss)
        self.average.update(self.step)
        self.epoch, self.position = self.batches.epoch, self.batches.position
        self.tokens += target_tokens
        self.log.step(
            self.step,
            loss=loss if math.isfinite(loss) else None,
            rate=self.peaks[0] * rate,
            gradient_norm=outcome.norm if math.isfinite(outcome.norm) else None,
            scale=outcome.scale,
            skipped=self.stepper.skipped,
            tokens=self.tokens,
            tokens_per_second=round(target_tokens / (time.monotonic() - begun)),
        )

    def nats(self, objective: nn.Module, chosen: list[np.ndarray], index: int) -> Tensor:
        """The summed loss of a micro-batch. Its dropout depends on seed, step and number alone."""
        seed = np.random.SeedSequence([self.config.seed, self.step, index]).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]))
        batch = self.examples.batch(chosen[index]).to(self.world.device)
        with autocast(self.config):
            return objective(batch)

    def evaluate(self) -> None:
        """Score the averaged weights on dev."""
        if self.config.evaluate_sentences:
            with self.average.in_place(self.model):
                self.scores = evaluate(
                    self.family, self.dev, self.config.evaluate_sentences, self.config.data.directions
                )
            self.log.event(self.step, "evaluated", scores=self.scores)

    def write_checkpoint(self, directory: Path) -> None:
        """The averaged weights, as a checkpoint directory."""
        record = {
            "precision": self.config.precision,
            "steps": self.step,
            "skipped_steps": self.stepper.skipped,
            "target_tokens": self.tokens,
            "loss_scale": self.stepper.scaler.get_scale(),
            "loss_scale_changes": self.stepper.scales,
            "dev_scores": self.scores,
            "config": self.config.model_dump(mode="json"),
        }
        with self.average.in_place(self.model):
            write_checkpoint(directory, self.family, record)
