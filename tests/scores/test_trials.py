"""What was tried, and is no part of the algorithms, computes what its name says."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.scores.trials import RecomputedAdvantages, recompute
from sb3_policyopt import PPO


class Trained(PPO):
    """Recomputes before its update, while the critic is still the one of the rollout."""

    differences: list[float]

    def train(self) -> None:
        self.prepare_engine().data(self.rollout_buffer, None)
        buffer = self.rollout_buffer
        before = [column.copy() for column in (buffer.values, buffer.advantages, buffer.returns)]
        recompute(self)
        after = (buffer.values, buffer.advantages, buffer.returns)
        self.differences = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(after, before, strict=True)]
        super().train()


@pytest.mark.parametrize("engine", ["closed_form", "autograd"])
def test_with_the_critic_of_the_rollout_nothing_changes(engine: str) -> None:
    """Three environments, rollouts in the middle of which episodes are cut off."""
    env = make_vec_env("Pendulum-v1", 3)
    model = Trained("MlpPolicy", env, n_steps=120, batch_size=60, n_epochs=1, engine=engine, device="cpu", seed=0)
    model.learn(2 * 360)
    assert max(model.differences) < 1e-5


def test_the_targets_move_with_the_critic() -> None:
    def trained(callback: BaseCallback | None) -> Any:
        env = make_vec_env("Pendulum-v1", 2)
        model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=3, device="cpu", seed=0)
        return model.learn(128, callback=callback)

    with_it, without = trained(RecomputedAdvantages()), trained(None)
    assert not np.allclose(with_it.rollout_buffer.returns, without.rollout_buffer.returns, rtol=1e-4)
    assert "passes" not in vars(with_it)  # the model is as it was
