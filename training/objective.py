"""The loss as a module that torch can compile and wrap, and what a micro-batch draws at random."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from edgemt.errors import UsageError
from edgemt.training.data import Batch
from edgemt.training.families import Family


class Objective(nn.Module):
    """A family's summed loss of a batch."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.model = family.model
        self.family = family

    def forward(self, batch: Batch) -> Tensor:
        return self.family.summed_loss(self.model, batch)


def compiled(module: nn.Module, device: str) -> nn.Module:
    """torch.compile, for lengths that change. Raises UsageError if it has no compiler here."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(4, device=device))
    except Exception as error:  # what it raises depends on what is missing
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        needed = "a C++ compiler (g++)" if device == "cpu" else "Triton and a C compiler"
        raise UsageError(
            f"compile = true, but torch.compile does not work here ({reason}): install {needed}, "
            "or leave it out"
        ) from error
    return cast(nn.Module, torch.compile(module, dynamic=True))


def recompute_activations(model: nn.Module) -> None:
    """Gradient checkpointing: less memory, and about a third more time."""
    model.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore[reportCallIssue]


def seed_micro_batch(seed: int, step: int, index: int) -> None:
    """Set torch's random state so that dropout depends on these three alone.

    Then it is the same in whichever process a micro-batch is, and a step can be done again.
    """
    state = np.random.SeedSequence([seed, step, index]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))
