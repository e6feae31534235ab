"""The returns of ``python -m benchmarks.masks_and_memory`` are those of episodes that no length makes more likely."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.masks_and_memory import evaluate

pytestmark = pytest.mark.fast


class Lasting(gym.Env[Any, Any]):
    """Episodes of one length, with a reward of 1 for each step."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        self.length, self.steps = length, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        self.steps += 1
        return np.zeros(1, np.float32), 1.0, self.steps == self.length, False, {}


def monitored(length: int) -> gym.Env[Any, Any]:
    return Monitor(Lasting(length))


class Still:
    """A model that always takes the same action."""

    def predict(self, observations: Any, state: Any, starts: Any, deterministic: bool) -> tuple[Any, None]:
        return np.zeros(len(observations), int), None


def test_each_environment_gives_its_share_of_the_episodes() -> None:
    lengths = (1, 2, 3, 10)
    env = DummyVecEnv([partial(monitored, length) for length in lengths])
    assert sorted(evaluate(Still(), env, masks=False, n_episodes=10)) == [1, 1, 2, 2, 3, 3, 3, 10, 10, 10]
