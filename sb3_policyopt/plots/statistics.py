"""Curves of one run and of several: smoothing, interquartile mean and bootstrap interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_POINTS = 200  # of a pooled curve: more cannot be distinguished on a page
_RESAMPLES = 1000
_SMOOTHING = 40  # a curve is averaged over 1/40 of its length


@dataclass(frozen=True)
class Band:
    """
    A curve with its uncertainty.

    :param steps: environment steps, shape [K]
    :param centre: interquartile mean over the runs, shape [K]
    :param low: lower end of the 95% bootstrap interval, shape [K]; equal to ``centre`` for one run
    :param high: upper end
    """

    steps: np.ndarray
    centre: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interquartile_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """
    The mean of the middle half (Agarwal et al. 2021, arXiv 2108.13264); of fewer than four values, their mean.

    :param values: any shape
    :param axis: over which to average
    :return: ``values`` without that axis
    """
    return np.asarray(stats.trim_mean(values, proportiontocut=0.25, axis=axis))


def bootstrap_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Percentile bootstrap of the interquartile mean over runs, 95%.

    :param values: shape [runs, ...]
    :return: lower and upper end, shape [...]; both the value itself for a single run
    """
    if len(values) == 1:
        return values[0], values[0]
    resampling = {"n_resamples": _RESAMPLES, "method": "percentile", "rng": np.random.default_rng(0)}
    result = stats.bootstrap((values,), interquartile_mean, axis=0, vectorized=True, **resampling)
    return result.confidence_interval.low, result.confidence_interval.high


def smooth(values: np.ndarray) -> np.ndarray:
    """
    Centred moving average over 1/40 of the curve, which leaves curves of fewer than 80 points unchanged.

    :param values: shape [K]
    :return: shape [K]
    """
    half = len(values) // (2 * _SMOOTHING)
    if half == 0:
        return values
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((total[last] - total[first]) / (last - first))


def pool(curves: Sequence[tuple[np.ndarray, np.ndarray]], smoothing: bool = True) -> Band:
    """
    Several runs as one curve, over the steps that all of them reached.

    :param curves: steps [K_i] (ascending) and values [K_i] of each run, none empty
    :param smoothing: whether each curve is smoothed before
    :return: for one run its own points; else the pooled curve on a common grid; the longest curve's points if no steps are
        common to all
    """
    smoothed = [(steps, smooth(values) if smoothing else values) for steps, values in curves]
    start, end = max(steps[0] for steps, _ in smoothed), min(steps[-1] for steps, _ in smoothed)
    if len(smoothed) == 1 or start > end:
        steps, values = max(smoothed, key=lambda curve: curve[0][-1] - curve[0][0])
        return Band(steps, values, values, values)
    grid = np.linspace(start, end, min(_POINTS, max(len(steps) for steps, _ in smoothed)))
    values = np.stack([np.interp(grid, steps, values) for steps, values in smoothed])
    low, high = bootstrap_interval(values)
    return Band(grid, interquartile_mean(values), low, high)
