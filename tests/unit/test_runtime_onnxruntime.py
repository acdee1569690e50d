"""ONNX Runtime behind the protocol, against a cache-free numpy model with the same weights."""

import dataclasses
import threading

import numpy as np
import pytest
from sessions import SOURCES, TOLERANCE, check, ints, naive_greedy, padded, start, take
from toy import EOS, PAD, Toy

from edgemt.errors import EdgemtError
from edgemt.runtimes import open_program
from edgemt.runtimes.onnxruntime import OrtProgram
from edgemt.runtimes.protocol import Want


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="module")
def program(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> OrtProgram:
    directory = tmp_path_factory.mktemp("toy")
    return open_program(directory, toy.write(directory))


class Mirror:
    """A session and, beside it, the plain token lists that it should stand for."""

    def __init__(self, toy, program, rows=(0, 1, 2)):
        self.toy, self.session = toy, start(program, rows)
        self.sources = [SOURCES[r] for r in rows]
        self.targets = [[] for _ in rows]

    def take(self, *columns):
        step = take(self.session, columns)
        self.targets = [t + list(c) for t, c in zip(self.targets, columns, strict=True)]
        check(self.toy, step, self.sources, self.targets, columns)
        assert self.session.lengths.tolist() == [len(t) for t in self.targets]
        return step

    def reindex(self, *rows):
        self.session.reindex(ints(rows))
        self.sources, self.targets = [self.sources[r] for r in rows], [self.targets[r] for r in rows]
        assert self.session.rows == len(rows)

    def rewind(self, *lengths):
        self.session.rewind(ints(lengths))
        self.targets = [t[:n] for t, n in zip(self.targets, lengths, strict=True)]


def test_steps_equal_the_reference(toy, program):
    mirror = Mirror(toy, program)
    for token in range(3, 20):
        mirror.take([token], [token + 1], [token + 2])


def test_wide_and_ragged_steps(toy, program):
    mirror = Mirror(toy, program)
    mirror.take([2, 5, 6], [2, 7, 8], [2, 9, 10])
    mirror.take([3], [4, 5, 6], [7, 8])
    mirror.take([5], [6], [7])
    mirror.take([], [6, 3, 4, 5], [7])
    mirror.take([8], [], [9])


def test_caches_outgrow_their_first_capacity(toy, program):
    mirror = Mirror(toy, program, rows=(0,))
    mirror.take(list(range(2, 22)) * 2)
    mirror.take(list(range(2, 22)))
    for token in (3, 4, 5, 6):
        mirror.take([token])


def test_reindex_copies_drops_and_reorders(toy, program):
    mirror = Mirror(toy, program)
    mirror.take([2, 3], [2, 4], [2, 5])
    mirror.reindex(0, 0, 1, 1, 2, 2)
    mirror.take([3], [4], [5], [6], [7], [8])
    mirror.reindex(1, 0, 2, 2, 5, 4)
    mirror.take([3], [4], [5], [6], [7], [8])
    mirror.reindex(0, 1, 2, 3, 4, 5)
    mirror.reindex(5, 0, 3)
    mirror.take([9], [10], [11])
    mirror.reindex(1)
    mirror.take([9])


def test_reindex_of_ragged_rows(toy, program):
    mirror = Mirror(toy, program)
    mirror.take([2, 3, 4], [2], [2, 5])
    mirror.reindex(1, 2, 1)
    mirror.take([3], [4], [5])
    mirror.reindex(1)
    mirror.take([3, 6])


def test_rewind_by_rows(toy, program):
    mirror = Mirror(toy, program)
    mirror.take([2, 3, 4, 5], [2, 6, 7, 8], [2, 9, 10, 11])
    mirror.rewind(4, 1, 3)
    mirror.take([12], [13], [14])
    mirror.rewind(2, 2, 2)
    mirror.take([12, 3], [13, 4], [14, 5])
    mirror.rewind(0, 4, 1)
    mirror.take([2, 3], [5], [6, 7, 8])
    mirror.rewind(1, 1, 1)
    assert mirror.session.past == 8  # row 0's only token lies behind what the others took back
    mirror.take([7], [8], [9])


def test_an_even_rewind_gives_the_slots_back(toy, program):
    mirror = Mirror(toy, program)
    mirror.take([2, 3, 4, 5], [2, 6, 7, 8], [2, 9, 10, 11])
    mirror.rewind(2, 2, 2)
    assert mirror.session.past == 2
    mirror.take([12], [13], [14])


def test_rewind_forward_is_refused(program):
    session = start(program)
    take(session, [[2], [2], [2]])
    with pytest.raises(EdgemtError, match="rewinding"):
        session.rewind(ints([2, 1, 1]))


def test_a_snapshot_serves_many_sessions(toy, program):
    session = start(program)
    take(session, [[2, 3, 4], [2], [2, 5]])
    prefix = session.snapshot()
    take(session, [[9], [9], [9]])  # what the session does later is not in the snapshot
    source = program.encode(*padded(SOURCES))
    for rows in ([0, 1, 2], [2, 2, 0, 1]):
        resumed = program.open(source, ints(rows), 20, prefix)
        columns = [[6], [7, 8], [9], [10]][: len(rows)]
        histories = [[[2, 3, 4], [2], [2, 5]][r] + c for r, c in zip(rows, columns, strict=True)]
        check(toy, take(resumed, columns), [SOURCES[r] for r in rows], histories, columns)


def test_a_snapshot_of_one_row_is_shared_by_all(toy, program):
    session = start(program, rows=[1])
    take(session, [[2, 3, 4]])
    resumed = program.open(program.encode(*padded([SOURCES[1]])), ints([0, 0]), 20, session.snapshot())
    check(toy, take(resumed, [[5], [6, 7]]), [SOURCES[1]] * 2, [[2, 3, 4, 5], [2, 3, 4, 6, 7]], [[5], [6, 7]])


def test_what_a_step_returns(toy, program):
    session = start(program)
    score = np.arange(12, dtype=np.int32).reshape(3, 2, 2)
    want = Want(top_k=5, score=score, alignment=True)
    step = session.step(ints([[2, 3], [2, 4], [2, 5]]), ints([2, 2, 2]), want)
    assert step.logits is None
    for row, token in enumerate((3, 4, 5)):
        logp = toy.logp(SOURCES[row], [2, token])
        logp[:, list(toy.suppress)] = -np.inf
        order = np.argsort(-logp, -1)[:, :5]
        np.testing.assert_array_equal(step.ids[row], order)
        np.testing.assert_allclose(step.logp[row], np.take_along_axis(logp, order, -1), atol=TOLERANCE)
        exact = np.take_along_axis(toy.logp(SOURCES[row], [2, token]), score[row], -1)
        np.testing.assert_allclose(step.scored[row], exact, atol=TOLERANCE)
        alignment = step.alignment[row]
        np.testing.assert_allclose(
            alignment[:, : len(SOURCES[row])], toy.alignment(SOURCES[row], [2, token]), atol=1e-5
        )
        assert not alignment[:, len(SOURCES[row]) :].any()


def test_suppressed_ids_are_never_chosen(toy, program):
    for want in (Want(top_k=4, suppress=ints([5, 6, 7])), Want(top_k=100, suppress=ints([PAD, 5]))):
        step = take(start(program), [[2], [2], [2]], want)
        banned = {*toy.suppress, *want.suppress.tolist()}
        assert step.ids.shape[-1] == min(want.top_k, toy.vocab - len(banned))
        assert not banned & set(step.ids.ravel().tolist())
        for row, source in enumerate(SOURCES):
            logp = toy.logp(source, [2])[-1]
            order = [i for i in np.argsort(-logp) if i not in banned][: want.top_k]
            assert step.ids[row, 0].tolist() == order
            np.testing.assert_allclose(step.logp[row, 0], logp[order], atol=TOLERANCE)


def test_a_shortlist_is_the_whole_vocabulary_for_its_step(toy, program):
    shortlist = ints([PAD, 3, 9, 4, 17])
    step = take(start(program), [[2], [2], [2]], Want(top_k=9, shortlist=shortlist))
    assert set(step.ids.ravel().tolist()) == {3, 9, 4, 17}
    for row, source in enumerate(SOURCES):
        logits = toy.logits(source, [2])[-1].astype(np.float64)
        logp = logits - np.log(np.exp(logits[shortlist]).sum())
        np.testing.assert_allclose(step.logp[row, 0], logp[step.ids[row, 0]], atol=TOLERANCE)
        assert (np.diff(step.logp[row, 0]) <= 0).all()


def test_what_is_returned_survives_the_next_step(program):
    session = start(program)
    want = Want(top_k=3, logits=True, alignment=True)
    first = take(session, [[2], [2], [2]], want)
    kept = dataclasses.replace(first, **{k: v.copy() for k, v in vars(first).items() if v is not None})
    take(session, [[7], [8], [9]], want)
    for name in ("ids", "logp", "logits", "alignment"):
        np.testing.assert_array_equal(getattr(first, name), getattr(kept, name))


def test_a_canonical_graph_without_topk_gives_the_same(toy, program, tmp_path):
    plain = open_program(tmp_path, dataclasses.replace(toy, top_k=False).write(tmp_path))
    assert not plain.caps.greedy
    for want in (
        Want(top_k=4),
        Want(top_k=99),
        Want(top_k=2, suppress=ints([4, 5]), score=ints([[[1]]] * 3)),
    ):
        a, b = (take(start(p), [[2, 3], [2, 4], [2, 5]], want) for p in (program, plain))
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.logp, b.logp, atol=TOLERANCE)


@pytest.mark.parametrize("forced", [[PAD], [PAD, 4, 9]])
@pytest.mark.parametrize("bonus", [-9.0, 2.0, 6.0])
def test_greedy_equals_the_naive_loop(tmp_path, forced, bonus):
    toy = Toy(eos_bonus=bonus, seed=3)
    program = open_program(tmp_path, toy.write(tmp_path))
    random = np.random.default_rng(1)
    sources = [[*random.integers(3, 23, n).tolist(), EOS] for n in (3, 9, 1, 5, 12, 7, 2, 4)]
    lines = program.greedy(program.encode(*padded(sources)), ints([forced] * len(sources)), 30, ints([EOS]))
    assert [line.tolist() for line in lines] == [naive_greedy(toy, s, forced, 30) for s in sources]
    alone = program.greedy(program.encode(*padded(sources[:1])), ints([forced]), 30, ints([EOS]))
    assert alone[0].tolist() == lines[0].tolist()


def test_sessions_in_threads_do_not_disturb_each_other(toy, program):
    source = program.encode(*padded(SOURCES))
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            random = np.random.default_rng(number)
            session, histories = program.open(source, ints([number % 3]), 40), [[]]
            for _ in range(30):
                columns = [random.integers(3, 23, random.integers(1, 3)).tolist()]
                histories = [histories[0] + columns[0]]
                check(toy, take(session, columns), [SOURCES[number % 3]], histories, columns)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]
