"""A recurrent decoder (SSRU) through the same protocol: its state is replaced, not grown."""

import numpy as np
import pytest
from sessions import SOURCES, ints, naive_greedy, padded
from toy import EOS, PAD, Toy

from edgemt.errors import EdgemtError
from edgemt.runtimes import open_program
from edgemt.runtimes.protocol import Want


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    toy = Toy("ssru", seed=4)
    directory = tmp_path_factory.mktemp("ssru")
    return toy, open_program(directory, toy.write(directory))


def encoded(program):
    return program.encode(*padded(SOURCES))


def take(toy, session, sources, targets, tokens):
    """Feed one token a row (None: none), and compare with the reference."""
    widths = ints([token is not None for token in tokens])
    step = session.step(ints([[PAD if t is None else t] for t in tokens]), widths, Want(logits=True))
    targets = [t if token is None else [*t, token] for t, token in zip(targets, tokens, strict=True)]
    for row, (source, target, token) in enumerate(zip(sources, targets, tokens, strict=True)):
        if token is not None:
            np.testing.assert_allclose(step.logits[row, 0], toy.logits(source, target)[-1], atol=2e-4)
    assert session.lengths.tolist() == [len(t) for t in targets]
    return targets


def test_what_it_can_do(model):
    _, program = model
    assert program.caps.rewind == 0 and program.caps.max_width == 1 and program.caps.greedy


def test_steps_reindex_and_rows_that_wait(model):
    toy, program = model
    session = program.open(encoded(program), ints([0, 1, 2]), 20)
    targets = take(toy, session, SOURCES, [[], [], []], [2, 2, 2])
    targets = take(toy, session, SOURCES, targets, [5, None, 7])
    targets = take(toy, session, SOURCES, targets, [6, 9, None])
    session.reindex(ints([2, 0, 0, 1]))
    sources, targets = [SOURCES[r] for r in (2, 0, 0, 1)], [targets[r] for r in (2, 0, 0, 1)]
    targets = take(toy, session, sources, targets, [3, 4, 5, 6])
    session.reindex(ints([3, 1]))
    take(toy, session, [sources[3], sources[1]], [targets[3], targets[1]], [8, 9])


def test_a_snapshot_starts_other_sessions(model):
    toy, program = model
    source = encoded(program)
    session = program.open(source, ints([0, 1, 2]), 20)
    targets = take(toy, session, SOURCES, [[], [], []], [2, 3, 4])
    prefix = session.snapshot()
    take(toy, session, SOURCES, targets, [9, 9, 9])
    resumed = program.open(source, ints([2, 0]), 20, prefix)
    take(toy, resumed, [SOURCES[2], SOURCES[0]], [targets[2], targets[0]], [5, 6])


@pytest.mark.parametrize("forced", [[PAD], [PAD, 3, 8]])
def test_greedy_equals_the_naive_loop(model, forced):
    toy, program = model
    lines = program.greedy(encoded(program), ints([forced] * 3), 12, ints([EOS]))
    for source, line in zip(SOURCES, lines, strict=True):
        assert line.tolist() == naive_greedy(toy, source, forced, 12)


def test_it_cannot_go_back_or_take_two_tokens_at_once(model):
    toy, program = model
    session = program.open(encoded(program), ints([0, 1, 2]), 20)
    with pytest.raises(EdgemtError, match="1 at a time"):
        session.step(ints([[2, 3]] * 3), ints([2, 2, 1]), Want())
    targets = take(toy, session, SOURCES, [[], [], []], [2, 2, 2])
    session.rewind(session.lengths)  # nothing to take back
    with pytest.raises(EdgemtError, match="recurrent"):
        session.rewind(ints([1, 0, 1]))
    take(toy, session, SOURCES, targets, [3, 4, 5])
