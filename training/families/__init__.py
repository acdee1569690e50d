"""A family is one kind of model, in a file of its own: here is what the training loop asks of it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from edgemt.training.config import Config, Data
from edgemt.training.data import Batch, Examples, Pairs


class Origin(NamedTuple):
    """Where a run's model comes from; each may be None, but not all three."""

    data: Path | None
    """The --data folder."""
    init: Path | None
    """--init: a checkpoint of any form, or what else the family can start from."""
    saved: Path | None = None
    """Of a resumed run: what `write_files` wrote when it began. Shape and tokenizer come from here, every
    trained weight from the run's state; weights that are not trained (below adapters) from `init` again."""


class Family(Protocol):
    """How a model is made, what an example is, its loss, how it translates, what it writes.

    The model is on the CPU in FP32 when made; the loop moves it, halves it, and sets it to train.
    """

    model: nn.Module

    def examples(self, pairs: Pairs, settings: Data, seed: int) -> Examples:
        """The training examples of the pairs; what it draws depends on `seed` alone."""
        ...

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in nats, label smoothing inside, summed over the target tokens of the batch.

        `model` is `self.model`, perhaps wrapped.
        """
        ...

    def translate(self, texts: list[str], source: str, target: str) -> list[str]:
        """Greedy translations by `self.model`, which is in evaluation mode."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint's model.safetensors holds: FP32, shared tensors once, adapters merged."""
        ...

    def write_files(self, directory: Path) -> None:
        """Everything of a checkpoint but its weights: config.json, generation_config.json, tokenizer."""
        ...


# Each module has `make(config, origin) -> Family`.
FAMILIES = {
    "marian": "edgemt.training.families.marian",
    "causal": "edgemt.training.families.causal",
}


def make_family(config: Config, origin: Origin) -> Family:
    """The family that the configuration names, with adapters if it asks for them."""
    module = importlib.import_module(FAMILIES[config.model.family])
    if not config.lora.rank:
        return module.make(config, origin)
    from edgemt.training.lora import Adapted

    # What is below the adapters is not in a run's state: it comes from the checkpoint again.
    return Adapted(module.make(config, origin._replace(saved=None)), config.lora, origin.init)
