"""An exponential moving average of the weights in FP32: at any moment a better model than the last step's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """`weights` follow the parameters with `decay`; early on faster, so that the start is forgotten.

    A decay of 0 is no average: nothing is kept, and the model's own weights take its place.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights: dict[str, Tensor] = (
            {name: p.detach().float().clone() for name, p in self.parameters.items()} if decay else {}
        )
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        if self.weights:
            decay = min(self.decay, (1 + step) / (10 + step))
            now = [p.detach().float() for p in self.parameters.values()]
            torch._foreach_lerp_(list(self.weights.values()), now, 1 - decay)  # pyright: ignore

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights and is in evaluation mode."""
        kept = {name: self.parameters[name].detach().clone() for name in self.weights}
        self.copy_to_parameters(self.weights)
        model.eval()
        try:
            yield
        finally:
            self.copy_to_parameters(kept)
            model.train()

    @torch.no_grad()
    def copy_to_parameters(self, weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            self.parameters[name].copy_(weight)
