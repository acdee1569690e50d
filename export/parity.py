"""Are the FP32 graphs the model? Torch decodes, and then the program is fed the same tokens step by step.

One after the other, so that only one of them is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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
STEPS = 32


class Reference(Protocol):
    """Torch's own decoding of some sources together."""

    def start(self, ids: I32, lengths: I32) -> None:
        """Begin with sources [rows, longest], padded on the right."""
        ...

    def step(self, tokens: I32) -> F32:
        """The logits [rows, V] after one more token [rows]; the first is the model's start token."""
        ...


@dataclass
class Answers:
    """What torch said to some sources together.

    Of each step: the tokens [rows] that it took, which rows were unfinished, and their logits [rows left, V].
    """

    ids: I32
    lengths: I32
    most: int
    steps: list[tuple[I32, NDArray[np.bool_], F32]] = field(default_factory=list)


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
    depth: str = "the whole model"  # what of it was compared at once

    @property
    def passed(self) -> bool:
        return self.max_abs_error <= self.tolerance and self.equal + self.excused == self.tokens

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        return (
            f"parity with torch: largest error {self.max_abs_error:.2e} (allowed {self.tolerance:.2e}), "
            f"{self.equal}/{self.tokens} greedy tokens equal, {self.excused} within the error, "
            f"{self.sentences} sentences, {self.depth}"
        )


def check_parity(
    checkpoint: Checkpoint,
    program: Program,
    model: Model,
    sources: Sequence[Sequence[int]],
    steps: int = STEPS,
) -> Parity:
    """Compare over at most `steps` tokens a sentence. `sources` are ids with language prefix and end.

    Raises EdgemtError if the difference is larger than FP32 arithmetic explains.
    """
    return compare(program, answers(checkpoint, model, sources, steps))


def answers(
    checkpoint: Checkpoint, model: Model, sources: Sequence[Sequence[int]], steps: int = STEPS
) -> list[Answers]:
    """Torch's greedy decoding of the sources; its model is gone from memory afterwards."""
    reference = family_of(checkpoint).Reference(_load(checkpoint))
    with _one_thread():
        return decode(reference, model, sources, steps)


def compare(program: Program, found: Sequence[Answers]) -> Parity:
    """The program's logits beside torch's, on the tokens that torch chose. Raises as `check_parity`."""
    error, total, squares, values = 0.0, 0.0, 0.0, 0
    equal, lead = [], []
    for ours, theirs in (pair for batch in found for pair in _pairs(program, batch)):
        error = max(error, float(np.abs(ours - theirs).max()))
        equal.append(ours.argmax(-1) == theirs.argmax(-1))
        lead.append(np.diff(np.partition(theirs, -2)[:, -2:])[:, 0])
        total += float(theirs.sum(dtype=np.float64))
        squares += float(np.einsum("rv,rv->", theirs, theirs, dtype=np.float64))
        values += theirs.size
    same, leads = np.concatenate(equal), np.concatenate(lead)
    deviation = max(0.0, squares / values - (total / values) ** 2) ** 0.5
    parity = Parity(
        max_abs_error=error,
        tolerance=TOLERANCE * max(1.0, deviation),
        logit_std=deviation,
        sentences=sum(len(batch.lengths) for batch in found),
        tokens=len(same),
        equal=int(same.sum()),
        excused=int((~same & (leads < MARGIN * error)).sum()),
    )
    if not parity.passed:
        raise EdgemtError(
            f"the exported graphs do not compute what torch computes ({parity}); please report this, "
            "with the checkpoint's config.json"
        )
    return parity


def _pairs(program: Program, found: Answers) -> Iterator[tuple[F32, F32]]:
    """(our, torch's) logits of each step."""
    yield from zip(follow(program, found), (logits for _, _, logits in found.steps), strict=True)


def together(parts: Sequence[Parity], depth: str) -> Parity:
    """One record of several, that of the part which came closest to its tolerance."""
    worst = max(parts, key=lambda part: part.max_abs_error / part.tolerance)
    counts = {name: sum(getattr(part, name) for part in parts) for name in ("tokens", "equal", "excused")}
    return Parity(
        worst.max_abs_error, worst.tolerance, worst.logit_std, worst.sentences, **counts, depth=depth
    )


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


def decode(
    reference: Reference, model: Model, sources: Sequence[Sequence[int]], steps: int = STEPS
) -> list[Answers]:
    """What a reference says to the sources, a few of them together."""
    batches = [sources[start : start + BATCH] for start in range(0, len(sources), BATCH)]
    return [_decode(reference, model, batch, steps) for batch in batches]


def _decode(reference: Reference, model: Model, sources: Sequence[Sequence[int]], steps: int) -> Answers:
    """The reference decodes greedily, until every row has ended or has taken so many steps."""
    import torch

    rows, lengths = len(sources), np.array([len(source) for source in sources], np.int32)
    ids = np.full((rows, lengths.max()), model.pad_id, np.int32)
    for row, source in enumerate(sources):
        ids[row, : len(source)] = source
    found = Answers(ids, lengths, min(steps, model.max_positions - int(lengths.max())))
    unfinished, taken = np.ones(rows, bool), np.full(rows, model.start_id, np.int32)
    with torch.inference_mode():
        reference.start(ids, lengths)
        for _ in range(found.most):
            logits = reference.step(taken)
            found.steps.append((taken, unfinished.copy(), logits[unfinished]))
            taken = logits.argmax(-1).astype(np.int32)
            unfinished &= taken != model.eos_id
            if not unfinished.any():
                break
    return found


def follow(program: Program, found: Answers) -> Iterator[F32]:
    """The program's logits [rows left, V] of each step, on the tokens that torch chose."""
    rows = len(found.lengths)
    source = program.encode(found.ids, found.lengths)
    session = program.open(source, np.arange(rows, dtype=np.int32), found.most)
    for taken, unfinished, _ in found.steps:
        ours = session.step(taken[:, None], np.ones(rows, np.int32), Want(logits=True)).logits
        assert ours is not None
        yield ours[unfinished, -1]
    session.close()
