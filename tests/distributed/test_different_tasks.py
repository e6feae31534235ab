"""Ranks whose observations use different parameters come to the parameters of one process that sees them all."""

from pathlib import Path
from typing import Any

import experts
import numpy as np
import pytest
import torch as th
from launch import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each of two ranks came to, for all cases."""
    folder: Path = tmp_path_factory.mktemp("experts")
    ended = run(2, "experts.py", folder)
    assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.output for rank in ended)
    return [th.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", experts.CASES)
def test_they_come_to_the_parameters_of_one_process(trained: Any, case: str) -> None:
    """
    Only what rank 0's minibatches used was stepped, by gradients of all ranks. TRPO added the gradients of one expert to
    those of another.
    """
    one, (rank_0, rank_1) = experts.train_in_one_process(case), (rank[case] for rank in trained)
    assert rank_0["steps"] == one["steps"]
    for name, expected in one["parameters"].items():
        # Float32 sums in another order, as in test_equality.py.
        np.testing.assert_allclose(rank_0["parameters"][name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(rank_1["parameters"][name], rank_0["parameters"][name])


@pytest.mark.parametrize("case", experts.CASES)
def test_the_case_is_what_it_says(trained: Any, case: str) -> None:
    """The experts of both ranks' tasks are trained, and the one of a task that no rank has is not."""
    last = trained[0][case]["parameters"]
    first = dict(experts.build(case, [0]).policy.named_parameters())
    moved = [
        float(np.abs(last[name] - first[name].detach().numpy()).max())
        for name in (f"features_extractor.experts.{task}.weight" for task in range(3))
    ]
    assert moved[0] > 1e-4 and moved[1] > 1e-4 and moved[2] == 0
