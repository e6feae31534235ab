"""A distributed training goes on from its checkpoint: after a kill to the same bits, and with another number of ranks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from launch import HERE, run, torchrun

pytestmark = pytest.mark.slow

STEPS = 640
"""Of all ranks; a rollout of 2 ranks takes 2 · 2 · 32 = 128 of them, one of 3 ranks 192."""


def results(folder: Path, n_ranks: int) -> Any:
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(n_ranks)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("uninterrupted")
    ended = run(2, "resumes.py", folder, STEPS)
    assert [rank.code for rank in ended] == [0, 0], ended
    return results(folder, 2)


def test_torchrun_restarts_a_killed_rank_and_training_comes_to_the_same_bits(tmp_path: Path, uninterrupted: Any) -> None:
    ended = torchrun(2, HERE / "resumes.py", tmp_path, STEPS, 300, max_restarts=2)
    assert ended.code == 0, ended.output
    assert "exitcode: -9" in ended.output or "Signal 9" in ended.output
    for after_a_kill, without in zip(results(tmp_path, 2), uninterrupted, strict=True):
        assert after_a_kill["timesteps"] == STEPS
        for quantity in without:
            np.testing.assert_array_equal(after_a_kill[quantity], without[quantity])


@pytest.mark.parametrize("n_before, n_after", [(2, 3), (3, 1), (1, 2)])
def test_another_number_of_ranks_goes_on(tmp_path: Path, n_before: int, n_after: int) -> None:
    # From 2 to 3 ranks 640 = 256 + 2 · 192, from 3 to 1 it is 384 + 4 · 64, from 1 to 2 it is 256 + 3 · 128.
    assert [rank.code for rank in run(n_before, "resumes.py", tmp_path, 256)] == [0] * n_before
    ended = run(n_after, "resumes.py", tmp_path, STEPS)
    assert [rank.code for rank in ended] == [0] * n_after, ended
    assert f"was written by {n_before} rank(s), now there are {n_after}" in ended[0].output
    ranks = results(tmp_path, n_after)
    for rank in ranks:
        assert rank["timesteps"] == STEPS
        np.testing.assert_array_equal(rank["parameters"], ranks[0]["parameters"])
        np.testing.assert_array_equal(rank["mean"], ranks[0]["mean"])
    assert len({rank["last"].tobytes() for rank in ranks}) == n_after


def test_ranks_of_the_command_line_without_a_seed_continue_with_that_of_the_run(tmp_path: Path) -> None:
    checkpoints = {"path": str(tmp_path / "checkpoints"), "save_freq": 64}
    entry: dict[str, Any] = {"policy": "MlpPolicy", "n_steps": 32, "batch_size": 32, "n_timesteps": 128}
    entry["callback"] = [{"sb3_policyopt.callbacks.ResumableCheckpointCallback": checkpoints}]
    (tmp_path / "entry.yml").write_text(yaml.safe_dump({"CartPole-v1": entry}))
    command = f"-m sb3_policyopt train --algo ppo --env CartPole-v1 -conf {tmp_path}/entry.yml -f {tmp_path}/logs --device cpu"
    for _ in range(2):
        ended = torchrun(2, *command.split())
        assert ended.code == 0, ended.output
    runs = [tmp_path / "logs" / "ppo" / f"CartPole-v1_{number}" / "provenance.json" for number in (1, 2)]
    first, second = (json.loads(path.read_text())["seed"] for path in runs)
    assert first == second
