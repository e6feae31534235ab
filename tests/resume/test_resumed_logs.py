"""What callbacks read of the last update, they read in a resumed run too, and every row is written as it would have been."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resume_scenarios import ROLLOUT, Crash, progress
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback


class Reading(BaseCallback):
    """Notes what it reads at the start of each rollout, dumps in the middle of some, and crashes once."""

    def __init__(self, crash_at: int | None) -> None:
        super().__init__()
        self.crash_at = crash_at
        self.read: list[dict[str, Any]] = []

    def _on_rollout_start(self) -> None:
        self.read.append({name: value for name, value in self.logger.name_to_value.items() if name.startswith("train/")})

    def _on_step(self) -> bool:
        if self.num_timesteps == self.crash_at:
            raise Crash
        if self.num_timesteps % (3 * ROLLOUT) == ROLLOUT // 2:
            self.logger.record("mine/now", self.num_timesteps)
            self.logger.dump(self.num_timesteps)
        return True


def train(cls: type[Any], folder: Path, log_interval: int, crash_at: int | None = None) -> Any:
    model = cls("MlpPolicy", "CartPole-v1", n_steps=ROLLOUT, batch_size=ROLLOUT // 2, seed=0, device="cpu")
    model.set_logger(configure(str(folder / "log"), ["csv"]))
    reading = Reading(crash_at)
    model.learn(
        8 * ROLLOUT, [reading, ResumableCheckpointCallback(folder / "ckpt", save_freq=ROLLOUT)], log_interval=log_interval
    )
    return reading.read


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize("log_interval", [1, 3])
def test_a_resumed_run_reads_and_writes_the_same(tmp_path: Path, cls: type[Any], log_interval: int) -> None:
    whole = train(cls, tmp_path / "whole", log_interval)
    with pytest.raises(Crash):
        train(cls, tmp_path / "resumed", log_interval, crash_at=5 * ROLLOUT - 3)
    resumed = train(cls, tmp_path / "resumed", log_interval)
    assert progress(tmp_path / "resumed") == progress(tmp_path / "whole")
    assert len(whole) == 8 and sum("train/value_loss" in read for read in whole) == 7
    for name in whole[-1]:
        np.testing.assert_array_equal([read.get(name, 0) for read in resumed], [read.get(name, 0) for read in whole])
