"""Greedy and beam search against naive searches that recompute everything from the numpy reference."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from toy import EOS, PAD, Toy

from edgemt.errors import EdgemtError
from edgemt.runtimes import open_program
from edgemt.search import Hypothesis, SearchOptions, search

SOURCES = [[5, 6, 7, 8, EOS], [9, 4, EOS], [11, 12, 13, 14, 15, 16, EOS], [3, 3, EOS]]


def program_of(toy: Toy, directory):
    return open_program(directory, toy.write(directory))


def naive_beam(toy: Toy, source: Sequence[int], size: int, limit: int, penalty: float) -> Hypothesis:
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[Hypothesis] = []
    for length in range(1, limit + 1):
        offers = []
        for total, tokens in live:
            logp = toy.logp(source, [PAD, *tokens])[-1]
            offers += [(total + logp[v], [*tokens, v]) for v in range(toy.vocab) if v not in toy.suppress]
        offers.sort(key=lambda offer: -offer[0])
        for total, tokens in offers[:size]:
            if tokens[-1] == EOS:
                ended.append(Hypothesis(tuple(tokens[:-1]), total / length**penalty, total, True))
        live = [offer for offer in offers if offer[1][-1] != EOS][:size]
        best = max((h.score for h in ended), default=-np.inf)
        top = live[0][0]
        if (len(ended) >= size and best >= top / length**penalty) or best >= top / limit**penalty:
            break
    if ended:
        return max(ended, key=lambda hypothesis: hypothesis.score)
    return Hypothesis(tuple(live[0][1]), live[0][0] / limit**penalty, live[0][0], False)


def same(found: Hypothesis, expected: Hypothesis) -> None:
    assert (found.tokens, found.finished) == (expected.tokens, expected.finished)
    assert found.logp == pytest.approx(expected.logp, abs=1e-3)
    assert found.score == pytest.approx(expected.score, abs=1e-3)


@pytest.mark.parametrize("decoder", ["attention", "ssru"])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("bonus", [-9.0, 1.0, 4.0])
def test_a_batch_of_beams_equals_the_naive_beam(tmp_path, decoder, size, bonus):
    toy = Toy(decoder, eos_bonus=bonus, seed=2)
    options = SearchOptions(beam=size, max_length_factor=1.5, max_length_extra=3, length_penalty=0.8)
    found = search(program_of(toy, tmp_path), SOURCES, toy.model(), options) if size > 1 else None
    for i, source in enumerate(SOURCES):
        expected = naive_beam(toy, source, size, int(1.5 * len(source)) + 3, 0.8)
        if found:
            same(found[i], expected)
        else:
            greedy = search(program_of(toy, tmp_path), [source], toy.model(), options)[0]
            assert (greedy.tokens, greedy.finished) == (expected.tokens, expected.finished)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 12, 51, 94, 108])
def test_narrow_beams_with_early_ends_equal_the_naive_beam(tmp_path, seed):
    toy = Toy(vocab=9, eos_bonus=2.0, seed=seed)
    options = SearchOptions(beam=2, max_length_factor=0, max_length_extra=6)
    found = search(program_of(toy, tmp_path), [[4, 5, EOS], [8, EOS]], toy.model(), options)
    for source, hypothesis in zip(([4, 5, EOS], [8, EOS]), found, strict=True):
        same(hypothesis, naive_beam(toy, source, 2, 6, 1.0))


def test_greedy_in_a_batch_keeps_each_row_s_own_limit(tmp_path):
    toy = Toy(eos_bonus=-9.0)
    options = SearchOptions(max_length_factor=1.0, max_length_extra=2)
    found = search(program_of(toy, tmp_path), SOURCES, toy.model(), options)
    assert [len(h.tokens) for h in found] == [len(s) + 2 for s in SOURCES]
    assert not any(h.finished for h in found)


def test_without_the_fused_loop_greedy_is_the_same(tmp_path):
    fused, plain = Toy(eos_bonus=1.0), Toy(eos_bonus=1.0, top_k=False)
    options = SearchOptions(max_length_extra=4)
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    a = search(program_of(fused, tmp_path / "a"), SOURCES, fused.model(), options)
    b = search(program_of(plain, tmp_path / "b"), SOURCES, plain.model(), options)
    assert [(h.tokens, h.finished) for h in a] == [(h.tokens, h.finished) for h in b]
    assert all(h.score is None for h in a) and all(h.score is not None for h in b)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_as_wide_as_the_space_finds_the_best(tmp_path, seed, penalty):
    toy = Toy(vocab=6, seed=seed, eos_bonus=0.5)
    source, limit, words = [3, 5, EOS], 4, (3, 4, 5)
    best = (-np.inf, ())
    for length in range(limit):
        for tokens in itertools.product(words, repeat=length):
            logp = toy.logp(source, [PAD, *tokens])
            path = [*tokens, EOS]
            total = sum(logp[i, v] for i, v in enumerate(path))
            best = max(best, (total / len(path) ** penalty, tokens))
    options = SearchOptions(200, max_length_factor=0, max_length_extra=limit, length_penalty=penalty)
    (found,) = search(program_of(toy, tmp_path), [source], toy.model(), options)
    assert found.tokens == best[1] and found.finished
    assert found.score == pytest.approx(best[0], abs=1e-3)


def test_scores_of_greedy_search_are_there_when_asked_for(tmp_path):
    toy = Toy(eos_bonus=1.0)
    program = program_of(toy, tmp_path)
    fast = search(program, SOURCES, toy.model(), SearchOptions(max_length_extra=4))
    scored = search(program, SOURCES, toy.model(), SearchOptions(max_length_extra=4, scores=True))
    for source, a, b in zip(SOURCES, fast, scored, strict=True):
        assert (a.tokens, a.finished, a.score) == (b.tokens, b.finished, None)
        same(b, naive_beam(toy, source, 1, 2 * len(source) + 4, 1.0))


def test_limits_never_exceed_the_model_s_positions(tmp_path):
    toy = Toy(eos_bonus=-99.0, max_positions=16)
    for beam in (1, 3):
        options = SearchOptions(beam, max_length_factor=9, max_length_extra=99)
        (found,) = search(program_of(toy, tmp_path), [SOURCES[0]], toy.model(), options)
        assert len(found.tokens) == 16 and not found.finished
        with pytest.raises(EdgemtError, match="16 positions"):
            search(program_of(toy, tmp_path), [[3] * 17], toy.model(), options)


def test_nothing_to_translate(tmp_path):
    toy = Toy()
    assert search(program_of(toy, tmp_path), [], toy.model(), SearchOptions()) == []
