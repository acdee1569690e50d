"""The forms in which trainers leave weights. A form is one module and one line of `FORMS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgemt.export.checkpoints.forms import (
    accelerate,
    amp_dict,
    deepspeed,
    deepspeed_plain,
    edgemt,
    gguf,
    trainer,
    transformers,
)
from edgemt.export.checkpoints.tensors import Weights


class Form(NamedTuple):
    """`found` looks at names, and at the keys of a pickled dict, and never raises; `read` reads no weight.

    Both take a directory or a file. `read` raises EdgemtError in one sentence.
    """

    name: str
    found: Callable[[Path], bool]
    read: Callable[[Path], Weights]


# The most specific first: a trainer's folder often holds a plain one's files too.
FORMS = (
    Form("edgemt train, run", edgemt.found_run, edgemt.read_run),
    Form("edgemt train", edgemt.found_checkpoint, edgemt.read_checkpoint),
    Form("DeepSpeed without ZeRO", deepspeed_plain.found, deepspeed_plain.read),
    Form("DeepSpeed ZeRO", deepspeed.found, deepspeed.read),
    Form("Trainer checkpoint", trainer.found, trainer.read),
    Form("Accelerate save_state", accelerate.found, accelerate.read),
    Form("GGUF", gguf.found, gguf.read),
    *(Form(name, transformers.found(name), transformers.read(name)) for name in transformers.MARKERS),
    Form("torch.save file", amp_dict.found, amp_dict.read),  # of a loop of one's own, torch.amp's or Apex's
)
