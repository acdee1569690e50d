"""The four precisions of a training step, and the guard that keeps a bad step out of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from edgemt.training.config import Config

SMALL_BATCH = 4  # sentences of an optimizer step
AUTOCAST = {"bf16": torch.bfloat16, "fp16-o1": torch.float16}


def autocast(config: Config) -> AbstractContextManager[object]:
    dtype = AUTOCAST.get(config.precision)
    return torch.autocast(config.device, dtype=dtype) if dtype else nullcontext()


def caution(precision: str) -> str | None:
    """What to know before training in this precision."""
    if precision != "fp16-pure":
        return None
    return (
        "warning: fp16-pure has no master weights and no loss scaling: small updates are rounded away, and "
        "what AdamW keeps of the square of a gradient below about 0.001 is zero, so that it divides by next "
        "to nothing; it is here for comparison, so use fp16-o1 or bf16"
    )


def caution_for_batch(precision: str, sentences: int) -> str | None:
    """The gradient of a few sentences varies most, and nothing but FP16 holds the sum of its updates."""
    if precision != "fp16-pure" or sentences >= SMALL_BATCH:
        return None
    return (
        f"warning: a batch of {sentences} sentences in fp16-pure: its gradients leave the range of FP16 most "
        f"easily; use at least {SMALL_BATCH} (data.batch_tokens, data.accumulate), or fp16-o1"
    )


class Outcome(NamedTuple):
    """Of one optimizer step."""

    norm: float  # of the gradient, after unscaling and before clipping; perhaps not finite
    skipped: bool
    scale: float  # that the losses were multiplied with; 1 without scaling


class Stepper:
    """Backward, unscale, clip, check, step: for one optimizer or several that share out the parameters."""

    def __init__(
        self, config: Config, parameters: Sequence[Tensor], optimizers: list[torch.optim.Optimizer]
    ) -> None:
        self.scaler = torch.amp.GradScaler(
            config.device,
            init_scale=config.loss_scale.initial,
            growth_factor=config.loss_scale.growth,
            backoff_factor=config.loss_scale.backoff,
            growth_interval=config.loss_scale.interval,
            enabled=config.precision == "fp16-o1",
        )
        self.parameters = parameters
        self.optimizers = optimizers
        self.clip = config.optimizer.clip
        self.skipped = 0  # in the whole run
        self.skipped_in_row = 0
        self.scales: list[tuple[int, float]] = []  # (step, scale) wherever the scale changed

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's share of the loss."""
        self.scaler.scale(loss).backward()

    def step(self, step: int, loss: float) -> Outcome:
        """One update from the gradients of all micro-batches; skipped if they or the loss are not finite."""
        self.note_scale(step)
        scale = self.scaler.get_scale()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.clip))
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            self.skipped_in_row = 0
        else:
            self.skipped += 1
            self.skipped_in_row += 1
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return Outcome(norm, not finite, scale)

    def note_scale(self, step: int) -> None:
        scale = self.scaler.get_scale()
        if self.scaler.is_enabled() and (not self.scales or self.scales[-1][1] != scale):
            self.scales.append((step, scale))

    def state_dict(self) -> dict[str, object]:
        return {
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
            "scales": self.scales,
        }

    def load_state_dict(self, state: dict) -> None:
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.skipped, self.skipped_in_row = state["skipped"], state["skipped_in_row"]
        self.scales = [tuple(change) for change in state["scales"]]
