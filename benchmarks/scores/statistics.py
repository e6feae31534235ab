"""What several seeds say: interval of a statistic, and the probability that one algorithm does better than another."""

from collections.abc import Callable, Sequence

import numpy as np

Strata = Sequence[np.ndarray]


def stratified_interval(
    statistic: Callable[[list[np.ndarray]], float], strata: Strata, n_resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """
    Percentile bootstrap in which every group of seeds is resampled on its own (Agarwal et al. 2021, arXiv 2108.13264).

    :param statistic: of the groups
    :param strata: returns of the seeds of each group, such as those of one environment and one algorithm
    :param n_resamples: how many samples to draw
    :param level: of the interval
    :return: lower and upper end
    """
    rng = np.random.default_rng(0)
    draws = [statistic([rng.choice(group, len(group)) for group in strata]) for _ in range(n_resamples)]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """
    How often a seed of ours beats one of theirs, over all pairs; a tie is half a win. It is Mann and Whitney's U over n m.

    :param ours: returns of n seeds
    :param theirs: returns of m seeds
    :return: between 0 and 1
    """
    difference = np.asarray(ours)[:, None] - np.asarray(theirs)[None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def mean_improvement(pairs: Strata) -> float:
    """
    The mean over environments of the probability of improvement.

    :param pairs: ours, theirs, ours, theirs ... of one environment after the other
    :return: between 0 and 1
    """
    beside = zip(pairs[::2], pairs[1::2], strict=True)
    return float(np.mean([probability_of_improvement(ours, theirs) for ours, theirs in beside]))
