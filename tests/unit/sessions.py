"""What tests of sessions share: sources, feeding them, and greedy search written out."""

import numpy as np
from toy import EOS, PAD

from edgemt.runtimes.protocol import Want

SOURCES = [[5, 6, 7, 8, EOS], [9, 4, EOS], [11, 12, 13, 14, 15, 16, EOS]]
TOLERANCE = 2e-4
ALL = Want(top_k=3, logits=True)


def ints(values) -> np.ndarray:
    return np.array(values, np.int32)


def padded(rows) -> tuple[np.ndarray, np.ndarray]:
    lengths = ints([len(row) for row in rows])
    ids = np.full((len(rows), lengths.max()), PAD, np.int32)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    return ids, lengths


def start(program, rows=(0, 1, 2), sources=SOURCES):
    return program.open(program.encode(*padded(sources)), ints(rows), 40)


def take(session, columns, want=ALL):
    """Feed rows of tokens of any lengths in one step."""
    ids, _ = padded([list(c) or [PAD] for c in columns])
    return session.step(ids, ints([len(c) for c in columns]), want)


def check(toy, step, sources, histories, columns):
    """The logits after each token of `columns` are the reference's; `histories` end in `columns`."""
    for row, (source, history, column) in enumerate(zip(sources, histories, columns, strict=True)):
        if column:
            expected = toy.logits(source, history)[-len(column) :]
            np.testing.assert_allclose(step.logits[row, : len(column)], expected, atol=TOLERANCE)


def naive_greedy(toy, source, forced, max_new):
    tokens = list(forced)
    for _ in range(max_new):
        logits = toy.logits(source, tokens)[-1]
        logits[list(toy.suppress)] = -np.inf
        best = int(logits.argmax())
        if best == EOS:
            break
        tokens.append(best)
    return tokens[len(forced) :]
