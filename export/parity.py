"""Are the FP32 graphs the model? Torch decodes, and the program is fed the same tokens step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.read import Checkpoint
from edgemt.export.families import family_of
from edgemt.manifest import Model
from edgemt.runtimes.protocol import F32, I32, Program, Want

TOLERANCE = 1e-4  # of max(1, standard deviation of the logits)
MARGIN = 10  # a token may differ where torch's own lead is below so many times the largest error
BATCH = 4  # sentences of different lengths together: masks and padding are compared too


class Reference(Protocol):
    """Torch's own decoding of some sources together."""

    def start(self, ids: I32, lengths: I32) -> None:
        """Begin with sources [rows, longest], padded on the right."""
        ...

    def step(self, tokens: I32) -> F32:
        """The logits [rows, V] after one more token [rows]; the first is the model's start token."""
        ...


@dataclass
class Parity:
    """Largest error of the logits, and how many greedy tokens were equal, or differed within the error."""

    max_abs_error: float
    tolerance: float
    logit_std: float
    sentences: int
    tokens: int
    equal: int
    excused: int

    @property
    def passed(self) -> bool:
        return self.max_abs_error <= self.tolerance and self.equal + self.excused == self.tokens

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        return (
            f"parity with torch: largest error {self.max_abs_error:.2e} (allowed {self.tolerance:.2e}), "
            f"{self.equal}/{self.tokens} greedy tokens equal, {self.excused} within the error, "
            f"{self.sentences} sentences"
        )


def check_parity(
    checkpoint: Checkpoint, program: Program, model: Model, sources: Sequence[Sequence[int]], steps: int = 32
) -> Parity:
    """Compare over at most `steps` tokens a sentence. `sources` are ids with language prefix and end.

    Raises EdgemtError if the difference is larger than FP32 arithmetic explains.
    """
    reference = family_of(checkpoint).Reference(_load(checkpoint))
    pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    with _one_thread():
        for start in range(0, len(sources), BATCH):
            pairs += _decode(reference, program, model, sources[start : start + BATCH], steps)
    ours, theirs = (np.concatenate(side) for side in zip(*pairs, strict=True))
    error = float(np.abs(ours - theirs).max())
    best, lead = theirs.argmax(-1), np.diff(np.partition(theirs, -2)[:, -2:])[:, 0]
    equal = ours.argmax(-1) == best
    deviation = float(theirs.std())
    parity = Parity(
        max_abs_error=error,
        tolerance=TOLERANCE * max(1.0, deviation),
        logit_std=deviation,
        sentences=len(sources),
        tokens=len(best),
        equal=int(equal.sum()),
        excused=int((~equal & (lead < MARGIN * error)).sum()),
    )
    if not parity.passed:
        raise EdgemtError(
            f"the exported graphs do not compute what torch computes ({parity}); please report this, "
            "with the checkpoint's config.json"
        )
    return parity


def _load(checkpoint: Checkpoint) -> Any:
    """The model as transformers makes it of the same configuration and weights."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    kind = getattr(transformers, checkpoint.architecture)
    weights = {name: torch.from_numpy(array) for name, array in checkpoint.tensors.items()}
    config = kind.config_class.from_dict(dict(checkpoint.config))
    return kind.from_pretrained(None, config=config, state_dict=weights).float().eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch's threads wait for each other at every small product: 25 times as long on a machine at work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _decode(
    reference: Reference, program: Program, model: Model, sources: Sequence[Sequence[int]], steps: int
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Torch decodes greedily, both see its tokens: (our, torch's) logits [rows left, V] of each step."""
    import torch

    rows, lengths = len(sources), np.array([len(source) for source in sources], np.int32)
    ids = np.full((rows, lengths.max()), model.pad_id, np.int32)
    for row, source in enumerate(sources):
        ids[row, : len(source)] = source
    most = min(steps, model.max_positions - (int(lengths.max()) if program.caps.prompts else 0))
    session = program.open(program.encode(ids, lengths), np.arange(rows, dtype=np.int32), most)
    unfinished, taken = np.ones(rows, bool), np.full(rows, model.start_id, np.int32)
    pairs = []
    with torch.inference_mode():
        reference.start(ids, lengths)
        for _ in range(most):
            theirs = reference.step(taken)
            ours = session.step(taken[:, None], np.ones(rows, np.int32), Want(logits=True)).logits
            assert ours is not None
            pairs.append((ours[unfinished, -1].copy(), theirs[unfinished]))
            taken = theirs.argmax(-1).astype(np.int32)
            unfinished &= taken != model.eos_id
            if not unfinished.any():
                break
    session.close()
    return pairs
