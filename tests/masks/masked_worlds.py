"""Environments with masks that are functions of their observations, by each of the ways in which masks are given."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from toy_environments import VECTOR

from benchmarks.environments import ToyEnv

SMALL: dict[str, Any] = {"n_steps": 24, "batch_size": 24, "seed": 0, "device": "cpu"}
N_ACTIONS = 4


def allowed_after(observation: np.ndarray) -> np.ndarray:
    """The mask that belongs to an observation, so that a mask of another step is noticed."""
    mask = observation > 0
    mask[int(10 * abs(observation[0])) % N_ACTIONS] = True
    return mask


class ByObservation(ToyEnv):
    """Its mask is a function of its observation."""

    def __init__(self) -> None:
        super().__init__(VECTOR, spaces.Discrete(N_ACTIONS))


class ByMethod(ByObservation):
    def action_masks(self) -> np.ndarray:
        return allowed_after(self.observation)


class ByInfo(ByObservation):
    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**options)
        return observation, {**info, "action_mask": allowed_after(observation)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *rest, info = super().step(action)
        return (observation, *rest, {**info, "action_mask": allowed_after(observation)})


class ByVecEnv(VecEnvWrapper):
    """A VecEnv with masks of its own, all of them in one array, for environments that have none."""

    def reset(self) -> Any:
        self.observations: Any = self.venv.reset()
        return self.observations

    def step_wait(self) -> Any:
        self.observations, *rest = self.venv.step_wait()
        return (self.observations, *rest)

    def action_masks(self) -> np.ndarray:
        return np.stack([allowed_after(row) for row in self.observations])


def vec(env: type[gym.Env[Any, Any]], vec_env: Any = DummyVecEnv, wrapper: Any = None) -> VecEnv:
    return make_vec_env(env, 3, seed=0, vec_env_cls=vec_env, wrapper_class=wrapper)
