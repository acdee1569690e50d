"""How much is clocked: as much as there is for a small model, and not half an hour for a large one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgemt.export.clock import LEAST_ROUNDS, LEAST_SENTENCES, ROUNDS, SECONDS, SENTENCES, affordable


def test_a_small_model_is_clocked_in_full_and_a_large_one_as_little_as_tells() -> None:
    assert affordable(0.05) == (SENTENCES, ROUNDS)
    assert affordable(60.0) == (LEAST_SENTENCES, LEAST_ROUNDS)


@given(st.floats(1e-4, 1e3))
def test_the_time_is_kept_wherever_the_least_allows_it(each: float) -> None:
    sentences, rounds = affordable(each)
    assert LEAST_SENTENCES <= sentences <= SENTENCES and LEAST_ROUNDS <= rounds <= ROUNDS
    least = LEAST_SENTENCES * (ROUNDS + 1) * each
    assert sentences * (rounds + 1) * each <= max(SECONDS, least)
