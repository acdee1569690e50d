"""Observers: what they promise of any data, checked against numpy and against quantising for real."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgemt.calibration.observers import BLOCK, OBSERVERS, Histogram, Mse, Observer
from edgemt.calibration.quantspec import affine
from edgemt.errors import EdgemtError

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = hnp.arrays(np.float32, st.integers(1, 300), elements=finite)
ordinary = hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1000, 1000, width=32))
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
by_name = pytest.mark.parametrize("name", OBSERVERS)


def observe(name: str, *parts: np.ndarray) -> Observer:
    observer = OBSERVERS[name]("tensor")
    for part in parts:
        observer.update(part)
    return observer


def bin_width(data: np.ndarray) -> float:
    largest = float(np.abs(data).max())
    return 2.0 ** math.frexp(largest)[1] / 4096 if largest else 0.0


def quantisation_error(data: np.ndarray, low: float, high: float) -> float:
    """Mean squared error of quantising for real."""
    scale, zero = affine(low, high)
    levels = np.clip(np.rint(data.astype(np.float64) / scale) + zero, 0, 255)
    return float((((levels - zero) * scale - data) ** 2).mean())


@by_name
@given(data=arrays, seed=st.integers(0, 99), cuts=st.lists(st.integers(0, 300), max_size=8))
@settings(max_examples=60, deadline=None)
def test_the_range_depends_on_the_values_alone(
    name: str, data: np.ndarray, seed: int, cuts: list[int]
) -> None:
    shuffled = np.random.default_rng(seed).permutation(data)
    chunks = np.split(shuffled, sorted(min(cut, data.size) for cut in cuts))
    whole, cut = observe(name, data), OBSERVERS[name]("tensor")
    for chunk in chunks:
        cut.update(chunk)
        cut.flush()  # each chunk is counted by itself, so that the histogram grows at other moments
    assert whole.range() == cut.range()
    assert (whole.histogram.counts == cut.histogram.counts).all()
    assert whole.histogram.counts.sum() == data.size


@by_name
@given(data=arrays)
@settings(max_examples=60, deadline=None)
def test_the_range_holds_zero_and_nothing_unseen(name: str, data: np.ndarray) -> None:
    low, high = observe(name, data).range()
    assert min(float(data.min()), 0.0) <= low <= 0.0 <= high <= max(float(data.max()), 0.0)


@given(data=arrays)
@settings(max_examples=100, deadline=None)
def test_minmax_is_exact(data: np.ndarray) -> None:
    assert observe("minmax", data).range() == (min(data.min(), 0), max(data.max(), 0))


@given(data=ordinary, percentile=st.sampled_from([50.0, 90.0, 99.0, 99.999, 100.0]))
@settings(max_examples=100, deadline=None)
def test_percentile_is_within_one_bin_of_numpy(data: np.ndarray, percentile: float) -> None:
    observer = OBSERVERS["percentile"]("tensor")
    observer.percentile = percentile  # pyright: ignore[reportAttributeAccessIssue]
    observer.update(data)
    low, high = observer.range()
    exact_high = max(0.0, float(np.percentile(data, percentile, method="higher")))
    exact_low = min(0.0, float(np.percentile(data, 100 - percentile, method="lower")))
    assert exact_high <= high <= exact_high + bin_width(data)
    assert exact_low - bin_width(data) <= low <= exact_low


@given(data=ordinary)
@settings(max_examples=60, deadline=None)
def test_mse_is_never_worse_than_minmax(data: np.ndarray) -> None:
    observer = observe("mse", data)
    low, high = observer.range()
    widest = min(float(data.min()), 0.0), max(float(data.max()), 0.0)
    assert observer.histogram.error(low, high, 8) <= observer.histogram.error(*widest, 8)
    # On the values themselves a bin's width of doubt remains, for each of the two estimates.
    step, width = (widest[1] - widest[0]) / 255, bin_width(data)
    doubt = 2 * width * (step + width)
    assert quantisation_error(data, low, high) <= quantisation_error(data, *widest) + doubt


def test_mse_clips_outliers_and_gains_by_it() -> None:
    data = np.random.default_rng(0).standard_t(4, 200_000).astype(np.float32)
    low, high = observe("mse", data).range()
    widest = float(data.min()), float(data.max())
    assert quantisation_error(data, low, high) < 0.75 * quantisation_error(data, *widest)


@pytest.mark.parametrize("draw", ["normal", "relu", "uniform"])
def test_the_error_estimate_agrees_with_quantising(draw: str) -> None:
    random = np.random.default_rng(1)
    data = {
        "normal": random.standard_normal(100_000),
        "relu": np.maximum(random.standard_normal(100_000), 0),
        "uniform": random.uniform(-2, 7, 100_000),
    }[draw].astype(np.float32)
    observer = observe("minmax", data)
    for low, high in (observer.range(), (-1.0, 2.0), (-0.1, 9.0)):
        assert observer.histogram.error(low, high, 8) == pytest.approx(
            quantisation_error(data, low, high), rel=0.1
        )
    assert observer.histogram.power() == pytest.approx(float((data.astype(np.float64) ** 2).mean()), rel=0.01)


@by_name
def test_memory_does_not_grow(name: str) -> None:
    random = np.random.default_rng(2)
    tracemalloc.start()
    observer = OBSERVERS[name]("tensor")
    observer.update(random.standard_normal(2 * BLOCK))
    before = tracemalloc.get_traced_memory()[0]
    for count in range(1, 300):
        observer.update(random.standard_normal((count, 1, 8, 4)).astype(np.float32))  # as a cache grows
    assert tracemalloc.get_traced_memory()[0] - before < 4096
    tracemalloc.stop()


@by_name
@given(shape=shapes)
@settings(max_examples=20, deadline=None)
def test_any_shape_is_taken(name: str, shape: tuple[int, ...]) -> None:
    observer = observe(name, np.full(shape, 2.0, np.float32), np.ones(1, np.float16))
    assert observer.range()[1] == pytest.approx(2.0 if math.prod(shape) else 1.0, rel=0.01)


@by_name
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_names_the_tensor(name: str, value: float) -> None:
    observer = OBSERVERS[name]("decoder.layers.0.fc1.input")
    observer.update(np.array([1.0, value, 2.0], np.float32))
    with pytest.raises(EdgemtError, match=r"decoder\.layers\.0\.fc1\.input .*not finite"):
        observer.range()


@by_name
def test_nothing_seen_is_an_error_and_all_zero_is_not(name: str) -> None:
    with pytest.raises(EdgemtError, match="never seen"):
        OBSERVERS[name]("tensor").range()
    observer = observe(name, np.zeros((3, 0, 2), np.float32), np.zeros(5, np.float32))
    assert observer.range() == (0.0, 0.0)
    assert observer.sqnr_db(0.0, 0.0) is None


def test_growth_keeps_every_count_exact() -> None:
    small = np.linspace(-1, 1, 10_001, dtype=np.float32)
    for largest in (1.5, 900.0, 1e30):
        grown, direct = Histogram(), Histogram()
        grown.add(small, 1.0)
        grown.add(np.full(1, largest, np.float32), largest)
        direct.add(np.append(small, np.float32(largest)), largest)
        assert (grown.counts == direct.counts).all()


def test_mse_of_one_sided_values_leaves_zero_at_the_end() -> None:
    data = np.abs(np.random.default_rng(3).standard_normal(10_000)).astype(np.float32)
    low, high = observe("mse", data).range()
    assert low == 0.0 and 0 < high <= data.max()
    low, high = observe("mse", -data).range()
    assert high == 0.0 and -data.max() <= low < 0
    assert isinstance(OBSERVERS["mse"]("tensor"), Mse)
