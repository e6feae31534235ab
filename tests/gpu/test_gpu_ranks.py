"""Two ranks on one device, which share a GPU by gloo if the host has but one."""

from pathlib import Path

import numpy as np
from launch import run

SCRIPT = Path(__file__).parent / "ranks_train.py"


def test_two_ranks_train_to_equal_bits(device: str, tmp_path: Path) -> None:
    ended = run(2, str(SCRIPT), tmp_path, device, LOCAL_WORLD_SIZE=2)  # as torchrun says how many share the host
    assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.output for rank in ended)
    ranks = [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(2)]
    for name in ("PPO", "TRPO"):
        assert np.isfinite(ranks[0][name]).all()
        np.testing.assert_array_equal(ranks[0][name], ranks[1][name])
        assert not np.array_equal(*(rank[f"{name} observations"] for rank in ranks))
