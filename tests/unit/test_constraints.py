"""Term constraints: the automaton against plain substring tests, and the search against exhaustive search."""

import copy
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy import EOS, PAD, Toy

from edgemt.constraints import LEAST, Stops, TermConstraint
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


def holds(tokens: Sequence[int], alternatives, inside=(), words=()) -> bool:
    """Whether every term has appeared as a word: `inside` goes on with one, `words` end in a letter."""
    free = {s[0] for term in alternatives if all(s[0] in inside for s in term) for s in term}
    inside = set(inside) - free

    def glued(at: int) -> bool:
        return 0 < at < len(tokens) and tokens[at - 1] in words and tokens[at] in inside

    return all(
        any(not glued(end) and not glued(end - len(s)) for s in term for end in places(tokens, s))
        for term in alternatives
    )


letters = st.sets(st.sampled_from([3, 4, 5, 6, 7, JOIN]))


@given(terms, st.lists(st.sampled_from([3, 4, 5, 6, 7, JOIN]), max_size=14), letters, letters)
def test_it_is_met_when_every_term_has_appeared(alternatives, tokens, inside, words):
    constraint = TermConstraint(alternatives, inside, words=words)
    for count, token in enumerate(tokens, 1):
        constraint = constraint.advance(token)
        assert (constraint.missing == 0) == holds(tokens[:count], alternatives, inside, words)


@given(terms, st.lists(st.sampled_from([3, 4, 5, 6, 7, JOIN]), max_size=10), letters, letters)
@example([[[3, 3, 3], [6, 4, 4, 3]], [[4, 4]]], [6], {3}, {3, 4})  # the one ends inside the other
def test_as_many_candidates_as_are_missing_meet_it(alternatives, tokens, inside, words):
    constraint = TermConstraint(alternatives, inside, words=words)
    for token in tokens:
        constraint = constraint.advance(token)
    taken, promised = list(tokens), constraint.missing
    while constraint.missing:
        token = min(constraint.candidates(), key=lambda t: constraint.advance(t).missing)
        assert constraint.advance(token).missing < constraint.missing
        constraint = constraint.advance(token)
        taken.append(token)
    assert len(taken) <= len(tokens) + promised
    assert holds(taken, alternatives, inside, words)
    assert not constraint.candidates()


def test_a_longer_word_is_not_the_term():
    holter, holters = [[1, 2]], [[1, 2, 3]]  # " Hol" "ter" "s"
    constraint = TermConstraint([holter, holters], inside=[2, 3], words=[1, 2, 3])
    for token, missing in ((1, 4), (2, 3), (3, 2), (8, 2), (1, 1), (2, 0)):
        constraint = constraint.advance(token)
        assert constraint.missing == missing


# Sentence ends: token 7 is one, token 8 a full stop or a decimal point, and JOIN the only digit.


def closed_too_early(alternatives, tokens: Sequence[int], inner: int) -> bool:
    """Whether more sentences than `inner` end before the last term is there, by a second reading."""
    ends = 0
    for i, token in enumerate(tokens):
        if holds(tokens[:i], alternatives):
            break
        decimal = token == 8 and tokens[i + 1 : i + 2] == [JOIN]
        ends += token in (7, 8) and not decimal
    return ends > inner


@given(terms, st.lists(st.sampled_from([3, 4, 5, 7, 8, JOIN]), max_size=12), st.integers(0, 2))
def test_no_sentence_ends_before_the_last_term(alternatives, tokens, inner):
    stops = Stops(frozenset({7, 8}), frozenset({8}), frozenset({JOIN}), inner)
    constraint = TermConstraint(alternatives, stops=stops)
    for token in tokens:
        constraint = constraint.advance(token)
    met = holds(tokens, alternatives) and not closed_too_early(alternatives, tokens, inner)
    assert (constraint.missing == 0) == met
    if constraint.missing < 99:  # it can still be met, in as many tokens as it says
        promised = len(tokens) + constraint.missing
        while constraint.missing:
            token = min(constraint.candidates(), key=lambda t: constraint.advance(t).missing)
            constraint = constraint.advance(token)
            tokens = [*tokens, token]
        assert len(tokens) <= promised and holds(tokens, alternatives)
        assert not closed_too_early(alternatives, tokens, inner)


def test_a_term_may_hold_a_stop_itself():
    constraint = TermConstraint([[[3, 8, 4]]], stops=Stops(frozenset({8})))
    for token in (3, 8, 4):
        constraint = constraint.advance(token)
    assert constraint.missing == 0
    assert TermConstraint([[[3, 8, 4]]], stops=Stops(frozenset({8}))).advance(8).missing > 99


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


@pytest.mark.parametrize(
    ("alternatives", "spans"),
    [
        ([[[3, 4]]], [[1]]),
        ([[[6, 3], [5]]], [[0, 1]]),
        ([[[3]], [[4]]], [[0], [2]]),
        ([[[3]], [[4]]], [[], [1]]),
    ],
)
@pytest.mark.parametrize(("place", "replace"), [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
def test_terms_stand_where_the_model_looks_at_their_source(model, alternatives, spans, place, replace):
    """A beam as wide as the space finds the best by log-probability and guidance, counted here anew."""
    toy, program = model
    extra, prefix = 2, 1
    constraint = TermConstraint(alternatives, spans=spans)
    limit = extra + constraint.missing
    best = (-np.inf, -np.inf, ())
    for length in range(limit):
        for tokens in itertools.product(WORDS, repeat=length):
            if not holds(tokens, alternatives):
                continue
            logp, path = toy.logp(SOURCE, [PAD, *tokens]), [*tokens, EOS]
            total = sum(logp[i, t] for i, t in enumerate(path))
            rank = total + guidance(toy, tokens, alternatives, spans, prefix, place, replace)
            best = max(best, (rank / len(path), total / len(path), tokens))
    options = SearchOptions(4000, 0, extra, place=place, replace=replace)
    (found,) = search(program, [SOURCE], toy.model(), options, [constraint], prefix)
    assert found.tokens == best[2]
    assert found.score == pytest.approx(best[1], abs=1e-3)  # the guidance is no part of the score


def guidance(toy, tokens, alternatives, spans, prefix, place, replace) -> float:
    """For terms that share no tokens."""
    attention = toy.alignment(SOURCE, [PAD, *tokens])[:, prefix:]
    total, inside = 0.0, []  # inside: how the spellings that have been begun may go on
    for i, token in enumerate(tokens):
        unmet = [not holds(tokens[:i], [term]) for term in alternatives]
        shares = [attention[i, span].sum() for span in spans]
        guided = [n for n, span in enumerate(spans) if span and unmet[n]]
        begun = [n for n in guided if any(s[0] == token for s in alternatives[n])]
        again = [
            n
            for n, span in enumerate(spans)
            if span and not unmet[n] and completes(tokens[: i + 1], alternatives[n])
        ]
        goes_on = any(rest[:1] == [token] for rest in inside)
        if again:
            total += place * np.log(LEAST)
        elif begun and not goes_on:
            total += place * np.log(max(LEAST, shares[begun[0]]))
        elif not goes_on:
            total += replace * np.log(max(LEAST, 1 - sum(shares[n] for n in guided)))
        inside = [rest[1:] for rest in inside if rest[:1] == [token]]
        inside += [list(s[1:]) for term in alternatives for s in term if s[0] == token]
        inside = [rest for rest in inside if rest]
    return total


def completes(tokens, term) -> bool:
    return any(list(tokens[-len(spelling) :]) == list(spelling) for spelling in term)


def test_without_alignment_the_terms_are_there_too(model):
    toy, program = model
    constraint = TermConstraint([[[3, 4]]], spans=[[0]])
    blind = copy.copy(program)
    blind.caps = dataclasses.replace(program.caps, alignment=False)
    options = SearchOptions(max_length_factor=0, max_length_extra=6)
    (found,) = search(blind, [SOURCE], toy.model(), options, [constraint], 1)
    (plain,) = search(program, [SOURCE], toy.model(), options, [TermConstraint([[[3, 4]]])])
    assert holds(found.tokens, [[[3, 4]]]) and found == plain


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
