"""Term constraints: the automaton against plain substring tests, and the search against exhaustive search."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import EOS, PAD, Toy

from edgemt.constraints import TermConstraint
from edgemt.errors import EdgemtError
from edgemt.runtimes import open_program
from edgemt.search import SearchOptions, search

SOURCE = [3, 5, 4, EOS]
JOIN = 9

spellings = st.lists(st.integers(3, 6), min_size=1, max_size=4)
terms = st.lists(st.lists(spellings, min_size=1, max_size=3), min_size=1, max_size=4)


def places(tokens: Sequence[int], spelling: Sequence[int]) -> list[int]:
    """Where an occurrence of the spelling ends."""
    n = len(spelling)
    return [i + n for i in range(len(tokens) - n + 1) if list(tokens[i : i + n]) == list(spelling)]


def holds(tokens: Sequence[int], alternatives, joins=()) -> bool:
    return all(
        any(end == len(tokens) or tokens[end] not in joins for s in term for end in places(tokens, s))
        for term in alternatives
    )


@given(terms, st.lists(st.sampled_from([3, 4, 5, 6, 7, JOIN]), max_size=14))
def test_it_is_met_when_every_term_has_appeared(alternatives, tokens):
    for joins in ((), (JOIN,)):
        constraint = TermConstraint(alternatives, joins)
        for count, token in enumerate(tokens, 1):
            constraint = constraint.advance(token)
            assert (constraint.missing == 0) == holds(tokens[:count], alternatives, joins)


@given(terms, st.lists(st.sampled_from([3, 4, 5, 6, 7, JOIN]), max_size=10))
def test_as_many_candidates_as_are_missing_meet_it(alternatives, tokens):
    constraint = TermConstraint(alternatives, [JOIN])
    for token in tokens:
        constraint = constraint.advance(token)
    taken, promised = list(tokens), constraint.missing
    while constraint.missing:
        token = min(constraint.candidates(), key=lambda t: constraint.advance(t).missing)
        assert constraint.advance(token).missing < constraint.missing
        constraint = constraint.advance(token)
        taken.append(token)
    assert len(taken) <= len(tokens) + promised
    assert holds(taken, alternatives, [JOIN])
    assert not constraint.candidates()


def test_an_abandoned_term_unwinds_to_what_its_end_begins():
    constraint = TermConstraint([[[3, 4, 3, 5]]])
    assert constraint.missing == 4
    for token, missing in ((3, 3), (4, 2), (3, 1), (4, 2), (3, 1), (6, 4), (3, 3), (3, 3)):
        constraint = constraint.advance(token)
        assert constraint.missing == missing


def test_overlapping_terms_share_their_tokens():
    constraint = TermConstraint([[[3, 4]], [[4, 5]]])
    for token in (3, 4, 5):
        constraint = constraint.advance(token)
    assert constraint.missing == 0


def test_spellings_without_tokens_are_refused():
    for alternatives in ([[]], [[[]]], [[[3]], [[4], []]]):
        with pytest.raises(ValueError, match="without"):
            TermConstraint(alternatives)


# In the search.

WORDS = (3, 4, 5, 6)


@pytest.fixture(scope="module", params=["attention", "ssru"])
def model(request, tmp_path_factory):
    toy = Toy(request.param, vocab=7, seed=5, eos_bonus=1.5)
    directory = tmp_path_factory.mktemp("toy")
    return toy, open_program(directory, toy.write(directory))


@settings(max_examples=60, deadline=None)
@given(alternatives=terms, beam=st.integers(1, 4), extra=st.integers(0, 8))
def test_every_term_is_in_the_output(model, alternatives, beam, extra):
    toy, program = model
    options = SearchOptions(beam, max_length_factor=0, max_length_extra=extra)
    constraint = TermConstraint(alternatives)
    (found,) = search(program, [SOURCE], toy.model(), options, [constraint])
    assert holds(found.tokens, alternatives)
    assert len(found.tokens) <= extra + constraint.missing
    path = [*found.tokens, *([EOS] if found.finished else [])]
    logp = toy.logp(SOURCE, [PAD, *found.tokens])
    assert found.logp == pytest.approx(sum(logp[i, token] for i, token in enumerate(path)), abs=1e-2)


@pytest.mark.parametrize(
    "alternatives",
    [[[[3]]], [[[4, 4]]], [[[6, 3], [5]]], [[[3]], [[4]]], [[[3, 4]], [[4, 5]]], [[[3, 5, 3]]]],
)
def test_a_wide_beam_finds_the_best_that_has_the_terms(model, alternatives):
    toy, program = model
    constraint, extra = TermConstraint(alternatives), 3
    limit = extra + constraint.missing
    best = (-np.inf, ())
    for length in range(limit):
        for tokens in itertools.product(WORDS, repeat=length):
            if holds(tokens, alternatives):
                logp = toy.logp(SOURCE, [PAD, *tokens])
                path = [*tokens, EOS]
                best = max(best, (sum(logp[i, t] for i, t in enumerate(path)) / len(path), tokens))
    options = SearchOptions(4000, max_length_factor=0, max_length_extra=extra)
    (found,) = search(program, [SOURCE], toy.model(), options, [constraint])
    assert found.tokens == best[1]
    assert found.score == pytest.approx(best[0], abs=1e-3)


def test_sources_with_and_without_terms_in_one_call(model):
    toy, program = model
    sources = [SOURCE, [6, EOS], [4, 4, EOS]]
    constraints = [None, TermConstraint([[[6, 5]]]), None]
    found = search(program, sources, toy.model(), SearchOptions(), constraints)
    alone = [
        search(program, [source], toy.model(), SearchOptions(), [constraint])[0]
        for source, constraint in zip(sources, constraints, strict=True)
    ]
    assert [h.tokens for h in found] == [h.tokens for h in alone]
    assert holds(found[1].tokens, [[[6, 5]]])


def test_more_terms_than_the_model_has_positions(model):
    toy, program = model
    with pytest.raises(EdgemtError, match="need 65 tokens, and the model has 64 positions"):
        search(program, [SOURCE], toy.model(), SearchOptions(), [TermConstraint([[[3] * 65]])])
