"""The statistics of docs/scores.md against closed forms and scipy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from benchmarks.scores import entries
from benchmarks.scores.groups import Group, group, is_shipped, stock_for
from benchmarks.scores.statistics import mean_improvement, probability_of_improvement, stratified_interval

pytestmark = pytest.mark.fast

RETURNS = hnp.arrays(float, st.integers(1, 8), elements=st.integers(-4, 4).map(float))  # small integers: many ties


@given(RETURNS, RETURNS)
def test_probability_of_improvement_is_mann_whitneys_u_over_all_pairs(ours: Any, theirs: Any) -> None:
    u = stats.mannwhitneyu(ours, theirs).statistic
    assert probability_of_improvement(ours, theirs) == pytest.approx(u / (len(ours) * len(theirs)))
    assert probability_of_improvement(theirs, ours) == pytest.approx(1 - probability_of_improvement(ours, theirs))


def test_probability_of_improvement_of_two_normal_distributions() -> None:
    # X ~ N(1, 1), Y ~ N(0, 1): P(X > Y) = Phi(1 / sqrt 2) = 0.760. The standard error of U / (n m) is below 0.006 here.
    rng = np.random.default_rng(0)
    estimate = probability_of_improvement(rng.normal(1, 1, 3000), rng.normal(0, 1, 3000))
    assert estimate == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=0.02)


def test_mean_improvement_weighs_environments_alike() -> None:
    # 1 on the first environment (six pairs), 1/4 on the second (4 pairs of which one is won).
    pairs = [np.array([5.0, 6.0]), np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0]), np.array([1.0, 3.0])]
    assert mean_improvement(pairs) == pytest.approx((1 + 1 / 4) / 2)


@pytest.mark.parametrize(("ones", "n"), [(3, 10), (5, 8)])
def test_bootstrap_of_a_mean_of_zeros_and_ones_is_binomial(ones: Any, n: int) -> None:
    values = np.concatenate([np.ones(ones), np.zeros(n - ones)])
    interval = stratified_interval(lambda groups: float(groups[0].mean()), [values], n_resamples=20_000)
    assert interval == pytest.approx(tuple(stats.binom.ppf([0.025, 0.975], n, ones / n) / n))


def test_strata_are_resampled_each_on_its_own() -> None:
    # Constant groups stay what they are, however they differ; resampled together, their mean would vary.
    assert stratified_interval(lambda groups: float(np.mean([g.mean() for g in groups])), [np.zeros(5), np.ones(5)]) == (
        0.5,
        0.5,
    )


def test_interval_of_a_mean_agrees_with_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).normal(size=30)
    ours = stratified_interval(lambda groups: float(groups[0].mean()), [values], n_resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)  # of an interval 0.7 wide


def row(
    seed: int,
    mean: Any,
    implementation: str = "ours",
    entry_hash: str = "a",
    env_id: str = "Hopper-v5",
    seconds: str = "60",
    commit: str = "0123456789",
) -> Any:
    return {
        "implementation": implementation,
        "algo": "trpo",
        "env_id": env_id,
        "entry": "shared",
        "entry_hash": entry_hash,
        "n_timesteps": "1000",
        "seed": str(seed),
        "mean": str(mean),
        "wall_seconds": seconds,
        "commit": commit,
        "curve": "",
    }


def test_group_has_the_mean_of_the_middle_half_of_its_seeds() -> None:
    (found,) = group([row(seed, mean) for seed, mean in enumerate([100, 3, 0, 5, 2, 6, 1, 4])])
    assert found.iqm == 3.5  # 2, 3, 4 and 5 are left
    low, high = found.interval
    assert 0 <= low < 3.5 < high <= 100
    assert found.minutes == 1.0


def test_minutes_are_those_of_rows_that_the_harness_made() -> None:
    assert Group((row(0, 1.0, seconds=""), row(1, 1.0, commit=""))).minutes is None
    assert Group((row(0, 1.0, seconds="600", commit=""), row(1, 1.0, seconds="120"))).minutes == 2.0
    assert Group((row(0, 1.0, seconds="300"), row(1, 1.0, seconds="120"))).minutes == 2.0  # the one that shared the least


def test_search_seeds_entries_and_implementations_stay_apart_and_seeds_are_in_order() -> None:
    rows = [row(1, 5.0), row(1000, 9.0), row(0, 4.0), row(0, 1.0, entry_hash="b"), row(0, 2.0, "stock")]
    assert [list(found.returns) for found in group(rows)] == [[4.0, 5.0], [9.0], [1.0], [2.0]]


def test_shipped_is_what_the_file_says_as_long_as_it_says_with_seeds_of_no_search() -> None:
    entry = entries.load("trpo", "Hopper-v5")
    name, steps = entries.identity(entry), str(int(float(entry["n_timesteps"])))

    def shipped(**changes: str) -> bool:
        return is_shipped(Group(({**row(0, 1.0, entry_hash=name), "n_timesteps": steps, **changes},)))

    assert shipped()
    others = ({"n_timesteps": "1000"}, {"seed": "1000"}, {"entry_hash": "b"}, {"implementation": "stock"})
    assert not any(shipped(**changes) for changes in others)


def test_the_best_stock_entry_is_the_one_to_beat() -> None:
    groups = group([row(0, 1.0), row(0, 2.0, "stock"), row(0, 7.0, "stock", "b"), row(0, 9.0, "stock", env_id="Ant-v5")])
    best = stock_for(groups[0], groups)
    assert best is not None and list(best.returns) == [7.0]
    assert stock_for(groups[0], groups[:1]) is None
