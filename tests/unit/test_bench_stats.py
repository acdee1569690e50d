"""Percentiles and intervals of the latency harness, against numpy and known distributions."""

import numpy as np
import pytest

from edgemt.bench.stats import percentile, percentile_intervals, ratio_interval


@pytest.mark.parametrize("q", [1, 50, 90, 99, 100])
@pytest.mark.parametrize("size", [1, 2, 10, 100, 101])
def test_a_percentile_is_the_smallest_measured_value_that_covers_its_share(q, size):
    values = np.random.default_rng(size).permutation(np.arange(1.0, size + 1))
    found = percentile(values, q)
    assert found in values
    assert np.mean(values <= found) >= q / 100
    assert np.mean(values < found) < q / 100
    assert found == np.percentile(values, q, method="inverted_cdf")


def test_intervals_agree_with_a_plain_bootstrap_where_sentences_do_not_differ():
    # One timing a sentence: then the two-stage bootstrap is the textbook one.
    times = np.random.default_rng(1).lognormal(3, 0.4, (400, 1))
    rng = np.random.default_rng(2)
    plain = [np.percentile(rng.choice(times.ravel(), 400), [50, 90]) for _ in range(2000)]
    expected = np.percentile(np.array(plain), [2.5, 97.5], axis=0).T
    assert np.allclose(percentile_intervals(times, [50, 90]), expected, rtol=0.03)


def test_intervals_hold_the_true_value_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(100):
        ((low, high),) = percentile_intervals(rng.lognormal(2, 0.5, (60, 1)), [50])
        inside += low <= np.exp(2) <= high  # the median of this log-normal
    assert 88 <= inside <= 100


def test_rounds_of_one_sentence_are_not_taken_for_independent_sentences():
    sentences = np.random.default_rng(4).lognormal(3, 0.5, (24, 1))
    often = np.repeat(sentences, 50, axis=1)  # measured fifty times, each time the same: we know no more
    ((low, high),) = percentile_intervals(often, [50])
    ((low_once, high_once),) = percentile_intervals(sentences, [50])
    assert high - low == pytest.approx(high_once - low_once, rel=0.2)


def test_intervals_repeat_and_do_not_depend_on_how_they_are_cut_into_blocks(monkeypatch):
    times = np.random.default_rng(5).lognormal(3, 0.4, (30, 4))
    first = percentile_intervals(times, [50, 99])
    assert percentile_intervals(times, [50, 99]) == first
    monkeypatch.setattr("edgemt.bench.stats.BLOCK", 1000)
    assert np.allclose(percentile_intervals(times, [50, 99]), first, rtol=0.1)


def test_ratio_tells_a_tenth_from_noise():
    rng = np.random.default_rng(6)
    lengths = rng.uniform(5, 100, (40, 1))
    base = lengths * rng.lognormal(0, 0.1, (40, 5))
    ratio, (low, high) = ratio_interval(1.1 * lengths * rng.lognormal(0, 0.1, (40, 5)), base)
    assert low < 1.1 < high
    assert low > 1
    assert ratio == pytest.approx(1.1, rel=0.05)
    _, (low, high) = ratio_interval(lengths * rng.lognormal(0, 0.1, (40, 5)), base)
    assert low < 1 < high


def test_a_single_text_has_an_interval_from_its_rounds():
    rng = np.random.default_rng(7)
    base, times = (factor * rng.lognormal(0, 0.1, (1, 40)) for factor in (10, 12))
    ratio, (low, high) = ratio_interval(times, base)
    assert 1 < low < ratio < high < 1.4


def test_one_timing_is_its_own_interval():
    assert percentile_intervals(np.array([[7.0]]), [50, 99]) == [(7.0, 7.0), (7.0, 7.0)]
