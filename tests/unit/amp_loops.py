"""Hand-written training loops on a tiny Marian, as users write them: what they have in hand when they save.

Apex's amp can no longer be installed. `ApexO2` does with torch what apex/amp and apex/fp16_utils did: the
model in FP16, an optimizer over FP32 copies, its update rounded back into the model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import MarianMTModel

from edgemt.export.checkpoints.read import Checkpoint
from edgemt.export.graphs.marian import build
from edgemt.export.languages import languages

torch.set_num_threads(1)
RATE = 1e-4  # so small that most updates are lost in FP16


def model_of(checkpoint: Path) -> MarianMTModel:
    return MarianMTModel.from_pretrained(checkpoint, attn_implementation="eager").train()


def loss_of(model: MarianMTModel, seed: int) -> torch.Tensor:
    ids = torch.randint(5, 300, (2, 7), generator=torch.Generator().manual_seed(seed))
    return model(input_ids=ids, labels=ids).loss.float()


class TorchAmp:
    """torch.amp with FP32 weights and dynamic loss scaling; the first step overflows and is skipped."""

    def __init__(self, checkpoint: Path, steps: int = 3) -> None:
        self.model = model_of(checkpoint)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
        for step in range(steps):
            with torch.autocast("cpu", torch.float16):
                loss = loss_of(self.model, step)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update(2.0**10 if step == 0 else None)
            self.optimizer.zero_grad()


class ApexO2:
    """FP16 weights and FP32 masters; `decayed` splits the parameters into two groups, as for weight decay."""

    def __init__(self, checkpoint: Path, decayed: Callable[[str], bool] = lambda name: True) -> None:
        self.model, self.scale = model_of(checkpoint).half(), 128.0
        named = dict(self.model.named_parameters())
        chosen = [[p for n, p in named.items() if decayed(n) is which] for which in (True, False)]
        self.halves = [group for group in chosen if group]
        self.masters = [[p.detach().clone().float() for p in group] for group in self.halves]
        for master in (master for group in self.masters for master in group):
            master.requires_grad = True
        self.optimizer = torch.optim.AdamW([{"params": group} for group in self.masters], lr=RATE)

    def step(self, seed: int) -> None:
        (loss_of(self.model, seed) * self.scale).backward()
        for group, masters in zip(self.halves, self.masters, strict=True):
            for half, master in zip(group, masters, strict=True):
                if half.grad is not None:
                    master.grad = half.grad.float() / self.scale
        self.optimizer.step()
        with torch.no_grad():
            for group, masters in zip(self.halves, self.masters, strict=True):
                for half, master in zip(group, masters, strict=True):
                    half.copy_(master)
        self.model.zero_grad()

    def named_masters(self) -> dict[str, torch.Tensor]:
        """The masters by name: what is to be exported."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        return {
            names[id(half)]: master.detach()
            for group, masters in zip(self.halves, self.masters, strict=True)
            for half, master in zip(group, masters, strict=True)
        }

    def state_dict(self) -> dict[str, torch.Tensor]:
        """As O2StateDictHook gives it: rounded weights, each cast to FP32 by itself."""
        return {name: tensor.float().clone() for name, tensor in self.model.state_dict().items()}


def graph_weights(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The weights that the exported graphs hold as the model has them (others are merged or scaled)."""
    weights = build(checkpoint, languages(checkpoint)[1]).weights
    found = {
        f"model.{name}": array for name, array in weights.items() if "layer_norm" in name or ".fc" in name
    }
    found = {name: array.T if name.endswith("weight") else array for name, array in found.items()}
    return found | {"model.shared.weight": weights["shared.weight"]}


def assert_exported(checkpoint: Checkpoint, masters: dict[str, torch.Tensor]) -> None:
    """The graphs hold these FP32 values bit for bit, and FP16 would have lost some of them."""
    found = graph_weights(checkpoint)
    assert len(found) > 20
    for name, array in found.items():
        assert array.tobytes() == masters[name].numpy().tobytes(), name
    lost = [name for name in found if not torch.equal(masters[name].half().float(), masters[name])]
    assert len(lost) > 20
