from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sb3_policyopt.plots.statistics import bootstrap_interval, interquartile_mean, pool, smooth

pytestmark = pytest.mark.fast

FLOATS = st.floats(-1e3, 1e3, width=32)


def test_interquartile_mean_is_the_mean_of_the_middle_half() -> None:
    # Sorted 0 1 | 2 3 4 5 | 6 100: the quarters at both ends go, (2 + 3 + 4 + 5) / 4 = 3.5.
    assert interquartile_mean(np.array([100.0, 3, 0, 5, 2, 6, 1, 4])) == 3.5


def test_interquartile_mean_of_three_is_their_mean() -> None:
    assert interquartile_mean(np.array([1.0, 2, 6])) == 3.0


def test_bootstrap_of_two_runs_is_their_range() -> None:
    # Both draws fall on the same run with probability 1/4 each way, more than the 2.5% outside either end.
    low, high = bootstrap_interval(np.array([[1.0, 10.0], [3.0, -10.0]]))
    np.testing.assert_array_equal(low, [1.0, -10.0])
    np.testing.assert_array_equal(high, [3.0, 10.0])


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    # 95% nominal; the percentile bootstrap of ten values is known to be somewhat narrow, so ask for 80% of 200 experiments.
    # Three standard errors are 0.085, so that an interval of half the width (about 67%) would fail.
    samples = np.random.default_rng(1).normal(7.0, 1.0, size=(10, 200))
    low, high = bootstrap_interval(samples)
    assert 0.80 < np.mean((low <= 7.0) & (high >= 7.0)) < 1.0


@given(hnp.arrays(float, st.tuples(st.integers(1, 6), st.just(3)), elements=FLOATS))
def test_interval_is_ordered_and_within_the_data(values: Any) -> None:
    low, high = bootstrap_interval(values)
    assert np.all(low <= high)
    assert np.all(values.min(axis=0) - 1e-9 <= low) and np.all(high <= values.max(axis=0) + 1e-9)


@given(hnp.arrays(float, st.integers(1, 300), elements=FLOATS))
def test_smoothing_stays_within_the_data_and_keeps_short_curves(values: Any) -> None:
    result = smooth(values)
    assert result.shape == values.shape
    assert result.min() >= values.min() - 1e-6 and result.max() <= values.max() + 1e-6
    if len(values) < 80:
        np.testing.assert_array_equal(result, values)


def test_smoothing_is_a_centred_moving_average() -> None:
    values = np.random.default_rng(0).normal(size=160)  # half a window is 160 // 80 = 2 points
    np.testing.assert_allclose(smooth(values)[2:-2], np.convolve(values, np.full(5, 0.2), mode="valid"), atol=1e-12)


def test_pool_averages_on_the_common_range() -> None:
    # Lines 2x and 4x, logged at different steps: their mean is 3x wherever both exist, here [10, 80].
    first = (np.arange(0.0, 101.0, 10.0), 2 * np.arange(0.0, 101.0, 10.0))
    second = (np.arange(10.0, 81.0, 7.0), 4 * np.arange(10.0, 81.0, 7.0))
    band = pool([first, second])
    assert (band.steps[0], band.steps[-1]) == (10.0, 80.0)
    np.testing.assert_allclose(band.centre, 3 * band.steps)
    np.testing.assert_allclose(band.low, 2 * band.steps)
    np.testing.assert_allclose(band.high, 4 * band.steps)


def test_pool_of_one_run_is_the_run() -> None:
    steps, values = np.array([1.0, 2, 3]), np.array([4.0, 5, 4])
    band = pool([(steps, values)])
    np.testing.assert_array_equal(band.centre, values)
    np.testing.assert_array_equal(band.low, band.high)


@pytest.mark.parametrize("ends", [(5.0, 3.0), (1.0, 9.0)])
def test_pool_of_runs_without_common_steps_is_the_longest(ends: Any) -> None:
    """Nothing is extrapolated."""
    short, long = np.array([ends[0]]), np.array([ends[1], ends[1] + 0.5])
    band = pool([(short, np.array([1.0])), (long, np.array([3.0, 4.0]))])
    np.testing.assert_array_equal(band.steps, long)
    np.testing.assert_array_equal(band.centre, [3.0, 4.0])
    np.testing.assert_array_equal(band.low, band.high)


def test_curves_of_evaluations_are_not_smoothed() -> None:
    steps, values = np.arange(100.0), np.eye(100)[50]
    assert pool([(steps, values)]).centre.max() < 0.5
    assert pool([(steps, values)], smoothing=False).centre.max() == 1.0
