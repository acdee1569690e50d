"""The optimizers, and the learning rate at a step."""

from __future__ import annotations

import math

import torch
from torch import nn

from edgemt.training.config import Optimizer, Schedule


def build_optimizers(model: nn.Module, settings: Optimizer) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices inside the layers and AdamW for the rest.

    Vectors are not decayed.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    inner = {name for name, p in named.items() if p.ndim == 2 and ".layers." in name}
    by_muon = inner if settings.name == "muon" else set()
    groups = [
        {
            "params": [p for n, p in named.items() if p.ndim == 2 and n not in by_muon],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in named.values() if p.ndim != 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=settings.rate, betas=settings.betas, fused=True)
    ]
    if by_muon:
        optimizers.append(
            torch.optim.Muon(
                [named[name] for name in sorted(by_muon)],
                lr=settings.muon_rate,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def rate_factor(step: int, schedule: Schedule, cooldown_from: int) -> float:
    """Share of the peak rate at a step (from 1): linear up, then by kind, then linear to zero.

    The last part, over `schedule.cooldown` steps from `cooldown_from` on, falls from the share reached there.
    """
    reached = share(min(step, cooldown_from), schedule)
    down = 1.0 - max(0, step - cooldown_from) / max(1, schedule.cooldown)
    return reached * max(0.0, down)


def share(step: int, schedule: Schedule) -> float:
    """The share at a step without the cooldown."""
    warmup, steps = schedule.warmup, schedule.steps
    if step < warmup:
        return step / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))  # of the way from the peak to the end
    match schedule.kind:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case "inverse-sqrt":
            return math.sqrt(max(1, warmup) / max(1, step))


def set_rates(optimizers: list[torch.optim.Optimizer], peaks: list[float], factor: float) -> None:
    for optimizer, peak in zip(optimizers, peaks, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
