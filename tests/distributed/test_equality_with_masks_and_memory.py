"""Two ranks are one process with all their environments, with masks and with memory, too."""

from typing import Any

import masks_and_memory_tape
import numpy as np
import pytest
import torch as th
from launch import run

from sb3_policyopt import TRPO


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks came to, for all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = run(2, "masks_and_memory_tape.py", folder)
    assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.output for rank in ended)
    return [th.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", masks_and_memory_tape.CASES)
def test_two_ranks_come_to_the_parameters_of_one_process(trained: list[dict[str, Any]], name: str) -> None:
    """Float32 sums in another order, as in test_equality.py."""
    one, rank_0 = masks_and_memory_tape.train_in_one_process(masks_and_memory_tape.CASES[name]), trained[0][name]
    for key, tolerance in (("parameters", 2e-5), ("moments", 2e-4)):
        assert np.linalg.norm(rank_0[key] - one[key]) < tolerance * np.linalg.norm(one[key])
    assert (rank_0["num_timesteps"], rank_0["engine"]) == (one["num_timesteps"], one["engine"])
    assert one["metrics"].keys() == rank_0["metrics"].keys()
    for key in one["metrics"].keys() - {"train/effective_sample_size", "train/cg_residual", "train/cg_iterations"}:
        assert rank_0["metrics"][key] == pytest.approx(one["metrics"][key], rel=2e-3, abs=2e-6, nan_ok=True), key
    if masks_and_memory_tape.CASES[name].algorithm is TRPO:
        assert 0 < rank_0["metrics"]["train/kl_divergence_loss"] <= masks_and_memory_tape.TRPO_ARGUMENTS["target_kl"]


@pytest.mark.parametrize("name", masks_and_memory_tape.CASES)
def test_the_ranks_have_the_same_bits(trained: list[dict[str, Any]], name: str) -> None:
    for key in ("parameters", "moments"):
        np.testing.assert_array_equal(trained[0][name][key], trained[1][name][key])
