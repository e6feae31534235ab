"""A training whose environment returns NaN: ``faulty_training.py ALGORITHM ACTIONS QUANTITY DEVICE`` prints how it ended."""

import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

import sb3_policyopt

ACTIONS = {"discrete": spaces.Discrete(3), "binary": spaces.MultiBinary(2), "box": spaces.Box(-1, 1, (2,), np.float32)}


class Faulty(gym.Env):
    """Random numbers; a reward, or a number of an observation, is NaN at the fifth step."""

    observation_space = spaces.Box(-9, 9, (3,), np.float32)

    def __init__(self, action_space: Any, quantity: str) -> None:
        self.action_space, self.quantity, self.steps = action_space, quantity, 0

    def observe(self) -> Any:
        observation = self.np_random.normal(size=3).astype(np.float32)
        if self.quantity == "observation" and self.steps == 5:
            observation[1] = np.nan
        return observation

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        reward = np.nan if self.quantity == "reward" and self.steps == 5 else 1.0
        return self.observe(), reward, False, False, {}


def train(algorithm: Any, actions: Any, quantity: str, device: str) -> Any:
    """The error's name and message."""
    env = make_vec_env(lambda: Faulty(ACTIONS[actions], quantity), n_envs=1, seed=0)
    model = getattr(sb3_policyopt, algorithm)("MlpPolicy", env, n_steps=16, batch_size=16, seed=0, device=device)
    assert model.policy.device.type == device
    try:
        model.learn(32)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


if __name__ == "__main__":
    print(train(*sys.argv[1:]))
