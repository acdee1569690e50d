"""The statistics of a comparison, on simulated runs whose truth is known: false alarms, power, coverage."""

import numpy as np
import pytest
from bench_files import times as simulated_times

from edgemt.bench import between
from edgemt.bench.between import RUN_SD, ratios, spread

TEXTS = 48
ALL = [range(TEXTS)]


def times(seed, **truth):
    return simulated_times(seed, texts=TEXTS, **truth)


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(between, "RESAMPLES", 200)  # the bounds move by a tenth of their distance


def verdicts(trials, runs, factor, **noise):
    """Share of trials in which a difference was shown, and in which the interval held the truth."""
    shown = held = 0
    for trial in range(trials):
        base = [times(1000 * trial + n, **noise) for n in range(runs)]
        other = [times(1000 * trial + 500 + n, factor=factor, **noise) for n in range(runs)]
        (found,) = ratios(base, other, ALL)
        shown += found.low > 1 or found.high < 1
        held += found.low <= factor <= found.high
    return shown / trials, held / trials


@pytest.mark.parametrize(
    ("runs", "noise"),
    [
        (1, {"run": 0.005, "round_": 0.003}),
        (1, {"run": 0.015, "round_": 0.01}),
        (1, {"run": 0.03, "round_": 0.03}),
        (3, {"run": 0.015, "round_": 0.01}),
    ],
)
def test_the_same_thing_twice_is_rarely_called_different(runs, noise):
    alarms, held = verdicts(60, runs, 1.0, **noise)
    assert alarms <= 0.05
    assert held >= 0.95


def test_a_tenth_is_seen_on_a_quiet_machine_and_its_size_is_told():
    shown, held = verdicts(40, 1, 1.10, run=0.01, round_=0.005)
    assert shown >= 0.9
    assert held >= 0.9


def test_several_runs_see_what_one_run_cannot():
    one, _ = verdicts(30, 1, 1.04, run=0.004, round_=0.003)
    four, _ = verdicts(30, 4, 1.04, run=0.004, round_=0.003)
    assert one <= 0.2
    assert four >= 0.9


def test_rounds_inside_a_run_do_not_hide_the_noise_between_runs():
    quiet = {"run": 0.0, "round_": 0.0}
    few, many = (
        ratios([times(1, rounds=n, **quiet)], [times(2, rounds=n, **quiet)], ALL)[0] for n in (3, 60)
    )
    assert np.log(many.high / many.low) > 0.7 * np.log(few.high / few.low)


def test_runs_that_differ_widen_the_interval():
    alike = [times(n, run=0) for n in range(3)]
    unlike = [alike[0] * 0.9, alike[1], alike[2] * 1.1]
    other = [times(n + 10, run=0) for n in range(3)]
    narrow, wide = (ratios(base, other, ALL)[0] for base in (alike, unlike))
    assert np.log(wide.high / wide.low) > 2 * np.log(narrow.high / narrow.low)
    assert spread([unlike, other]).sd > 2 * spread([alike, other]).sd
    assert spread([unlike, other]).from_runs == 4


def test_drift_between_rounds_counts_as_noise_between_runs():
    run = times(1, round_=0)
    drifting = run * np.linspace(1, 1.3, run.shape[1])
    assert spread([[run], [run]]).sd == RUN_SD
    assert not spread([[run], [run]]).drift
    found = spread([[run], [drifting]])
    assert found.drift
    assert found.sd > 3 * RUN_SD


def test_groups_are_compared_on_their_own():
    base, other = times(1), times(2)
    other[:8] *= 2
    first, rest = ratios([base], [other], [range(8), range(8, TEXTS)])
    assert first.ratio == pytest.approx(2, rel=0.1)
    assert rest.ratio == pytest.approx(1, rel=0.05)
    assert first.low > rest.high


def test_one_round_and_one_text_still_give_an_interval():
    (found,) = ratios([np.array([[10.0]])], [np.array([[11.0]])], [[0]])
    assert found.ratio == pytest.approx(1.1)
    assert found.low < 1.1 < found.high
