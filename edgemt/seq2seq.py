"""The family of encoder-decoder models (Marian and its likes): how a text becomes the program's input."""

from __future__ import annotations

from collections.abc import Sequence

from edgemt.constraints import Constraint
from edgemt.errors import UsageError
from edgemt.manifest import Model
from edgemt.runtimes.protocol import Program
from edgemt.search import Hypothesis, SearchOptions, search


def source_limit(model: Model) -> int:
    """The most tokens of one source: half of the positions, so that a translation twice as long has room."""
    return max(model.max_positions // 2, 8)


def generate(
    program: Program,
    model: Model,
    direction: str,
    sources: Sequence[Sequence[int]],
    options: SearchOptions,
    constraints: Sequence[Constraint | None] | None = None,
) -> list[Hypothesis]:
    """The best translation of each source (ids without prefix and end) in `direction`, such as "zh-en".

    Raises UsageError for a source that has more tokens than the model has positions.
    """
    prefix = model.source_prefix.get(direction, [])
    rows = [[*prefix, *source, model.eos_id] for source in sources]
    for row in rows:
        if len(row) > model.max_positions:
            raise UsageError(
                f"a sentence has {len(row)} tokens and the model takes {model.max_positions}; split it in two"
            )
    return search(program, rows, model, options, constraints, len(prefix))
