"""Families in the workshop: what export must know of a kind of model beside its graphs.

A family is one module; an architecture is one line.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgemt.errors import EdgemtError

if TYPE_CHECKING:
    from edgemt.export.checkpoints.read import Checkpoint
    from edgemt.export.graphs.graphset import Canonical
    from edgemt.export.parity import Reference

ARCHITECTURES = {
    "MarianMTModel": "seq2seq",
    "HunYuanDenseV1ForCausalLM": "causal",
    "LlamaForCausalLM": "causal",
    "Qwen2ForCausalLM": "causal",
    "Qwen3ForCausalLM": "causal",
}
Pairs = list[list[str]]  # [["zh", "en"], …]


class Family(Protocol):
    """What the module of a family has."""

    NAME: str  # the device's name of it
    CANDIDATES: Mapping[str, Sequence[str]]  # precision asked for -> those to try, for INT8 by scheme
    OBSERVER: str  # of ranges, unless asked for another
    CALIBRATION_SENTENCES: int  # unless asked for another number

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise EdgemtError if the configuration asks for what the graphs do not compute."""
        ...

    def languages(self, checkpoint: Checkpoint, asked: str | None) -> tuple[Pairs, dict[str, list[int]]]:
        """The pairs that it translates (`asked`: "zh-en,en-zh"), and the ids that choose each."""
        ...

    def build(self, checkpoint: Checkpoint, prefixes: dict[str, list[int]]) -> Canonical:
        """The canonical graphs of a checkpoint whose weights are checked."""
        ...

    def write_tokenizer(self, checkpoint: Checkpoint, directory: Path) -> dict[str, Any]:
        """Write what the device's tokenizer needs; return the manifest's fields for it."""
        ...

    @property
    def Reference(self) -> Callable[[Any], Reference]:
        """Decoding by a model of torch's, for parity."""
        ...


def family_of(checkpoint: Checkpoint) -> Family:
    """The checkpoint's family. Raises EdgemtError if its architecture has none."""
    if checkpoint.architecture not in ARCHITECTURES:
        raise EdgemtError(
            f"{checkpoint.directory / 'config.json'} names the architecture {checkpoint.architecture}, which "
            f"has no canonical graphs; edgemt exports {', '.join(ARCHITECTURES)}"
        )
    name = ARCHITECTURES[checkpoint.architecture]
    return cast(Family, importlib.import_module(f"edgemt.export.families.{name}"))


def check_architecture(checkpoint: Checkpoint) -> Family:
    """The family. Raises EdgemtError if there are no graphs for this configuration; reads no weight."""
    family = family_of(checkpoint)
    checkpoint.check_config()
    family.check(checkpoint)
    return family
