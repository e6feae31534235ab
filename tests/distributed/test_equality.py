"""Several ranks are one process with all their environments: same data, same parameters."""

from typing import Any

import numpy as np
import pytest
import tape
import torch as th
from launch import run

from sb3_policyopt import PPO, TRPO

slow = pytest.mark.slow
RANKS = [
    pytest.param((n, way), id=f"{n}_ranks-{way}", marks=() if (n, way) == (2, "one_host") else slow)
    for n, way in ((1, "one_host"), (2, "one_host"), (2, "several_hosts"), (3, "one_host"), (3, "several_hosts"))
]


@pytest.fixture(scope="module", params=RANKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each rank came to, for all cases."""
    n, way = request.param
    folder = tmp_path_factory.mktemp("ranks")
    ended = run(n, "tape.py", folder, way)
    assert [rank.code for rank in ended] == [0] * n, "\n".join(rank.output for rank in ended)
    return [th.load(folder / f"{rank}.pt", weights_only=False) for rank in range(n)]


@pytest.fixture(scope="module")
def in_one_process() -> Any:
    known = {}

    def train(name: str, world_size: int) -> Any:
        if (name, world_size) not in known:
            known[name, world_size] = tape.train_in_one_process(tape.CASES[name], world_size)
        return known[name, world_size]

    return train


def relative_difference(a: Any, b: Any) -> Any:
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("name", tape.CASES)
class TestRanks:
    @pytest.mark.thinned(2)
    def test_they_come_to_the_parameters_of_one_process(self, trained: Any, name: str, in_one_process: Any) -> None:
        # Float32 sums in another order: 3 updates of up to 36 steps, each with relative errors of some 1e-7.
        one = in_one_process(name, len(trained))
        rank_0 = trained[0][name]
        assert relative_difference(rank_0["parameters"], one["parameters"]) < 2e-5
        assert relative_difference(rank_0["moments"], one["moments"]) < 2e-4
        assert rank_0["num_timesteps"] == one["num_timesteps"]
        assert sorted(rank_0["episodes"]) == pytest.approx(sorted(one["episodes"]))

    def test_they_log_the_numbers_of_one_process(self, trained: Any, name: str, in_one_process: Any) -> None:
        one, rank_0 = in_one_process(name, len(trained))["metrics"], trained[0][name]["metrics"]
        assert one.keys() == rank_0.keys()
        # The fraction of a batch is not the mean of the fractions of its parts, and CG's last residuals are rounding errors.
        for key in one.keys() - {"train/effective_sample_size", "train/cg_residual", "train/cg_iterations"}:
            assert rank_0[key] == pytest.approx(one[key], rel=2e-3, abs=2e-6, nan_ok=True), key

    def test_they_have_the_same_bits(self, trained: Any, name: str) -> None:
        for rank in trained[1:]:
            assert np.array_equal(rank[name]["parameters"], trained[0][name]["parameters"])
            assert np.array_equal(rank[name]["moments"], trained[0][name]["moments"])
            assert rank[name]["num_timesteps"] == trained[0][name]["num_timesteps"]
            assert rank[name]["episodes"] == trained[0][name]["episodes"]

    def test_the_case_is_what_it_says(self, trained: Any, name: str) -> None:
        metrics = trained[0][name]["metrics"]
        if name.startswith("stopped_by_kl-PPO"):
            assert metrics["train/n_updates"] < tape.N_ITERATIONS * tape.PPO_ARGUMENTS["n_epochs"]
        assert metrics["train/skipped_updates"] == pytest.approx(0) or name.startswith("one_transition_not_finite")
        if name.startswith("one_transition_not_finite"):
            # The transition is in one minibatch of each pass.
            case = tape.CASES[name]
            passes = tape.PPO_ARGUMENTS["n_epochs"] if case.algorithm is PPO else tape.TRPO_ARGUMENTS["n_critic_updates"]
            assert metrics["train/skipped_updates"] == passes

    def test_trpo_keeps_the_kl_over_all_states(self, trained: Any, name: str) -> None:
        case = tape.CASES[name]
        if case.algorithm is not TRPO:
            return
        sums, counts = np.array([rank[name]["kl"] for rank in trained]).T
        assert 0 < sums.sum() / counts.sum() <= case.arguments["target_kl"]
        assert sums.sum() / counts.sum() == pytest.approx(trained[0][name]["metrics"]["train/kl_divergence_loss"], rel=1e-4)


def test_the_moments_of_vec_normalize_are_those_of_one_process(trained: Any) -> None:
    one = tape.train_in_one_process(tape.NORMALIZED, len(trained))["running_moments"]
    for rank in trained:
        observations, returns = rank["normalized"]["running_moments"]
        # SB3 takes the mean of a step's observations in float32, which ours inherit; that of the returns in float64.
        np.testing.assert_allclose(observations, one[0], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(returns, one[1], rtol=1e-10)
        np.testing.assert_array_equal(rank["normalized"]["parameters"], trained[0]["normalized"]["parameters"])
