"""Recipes that come with edgemt (`edgemt train --preset NAME`): a configuration for a checkpoint, and data.

The files beside this one are the configurations: `NAME.FAMILY.toml`, and where there is one
`NAME.FAMILY.large.toml` for a checkpoint of more than SMALL weights, which is trained through adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from edgemt.errors import UsageError
from edgemt.export.checkpoints.facts import read_json
from edgemt.export.checkpoints.read import read_weights
from edgemt.training.families.causal import KINDS
from edgemt.training.presets import medical

SMALL = 250_000_000
# How each preset's data folder is made, if the corpus it is made of is at hand (None if it is not).
DATA: dict[str, Callable[[], Path | None]] = {"medical-zh-en": medical.prepared}
FAMILY_OF = {"marian": "marian", **dict.fromkeys(KINDS, "causal")}


def find(name: str, init: Path | None, data: Path | None) -> tuple[Path, Path]:
    """The configuration file of preset `name` for the checkpoint `init`, and the data folder.

    `data` is the user's own folder, if there is one. Raises UsageError, in one sentence, for what is missing.
    """
    if name not in DATA:
        raise UsageError(f"there is no preset {name}; choose of {', '.join(DATA)}")
    if init is None:
        raise UsageError(f"--preset {name} fine-tunes a checkpoint: say which with --init")
    folder = data or DATA[name]()
    if folder is None:
        raise UsageError(
            f"the corpus of {name} comes with edgemt's source, not with the package: give a folder of "
            "train.tsv and dev.tsv with --data"
        )
    return configuration(name, init), folder


def configuration(name: str, init: Path) -> Path:
    """The file that fits a checkpoint's family and size."""
    weights = read_weights(init)
    file = weights.directory / "config.json"
    kind = str(read_json(file).get("model_type")) if file.is_file() else "?"
    if kind not in FAMILY_OF:
        raise UsageError(
            f"{init} is of the kind {kind}, which is not trained here; take {', '.join(FAMILY_OF)}"
        )
    family = FAMILY_OF[kind]
    size = sum(math.prod(stored.shape) for stored in weights.tensors.values())
    large = Path(__file__).with_name(f"{name}.{family}.large.toml")
    return large if size > SMALL and large.is_file() else large.with_name(f"{name}.{family}.toml")
