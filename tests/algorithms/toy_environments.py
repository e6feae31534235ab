"""Small environments of every kind of space, and what the tests of this folder do with rollouts."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.environments import ToyEnv

IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
VECTOR = spaces.Box(-1, 1, (4,), np.float32)
OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": VECTOR,
    "matrix": spaces.Box(-1, 1, (2, 3), np.float32),
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(4),
    "image": IMAGE,
    "dict": spaces.Dict({"vector": VECTOR, "choice": spaces.Discrete(3)}),
    "dict_with_image": spaces.Dict({"vector": VECTOR, "image": IMAGE}),
}


def box(dimensions: int) -> spaces.Box:
    return spaces.Box(-1, 1, (dimensions,), np.float32)


ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "box_1": box(1),
    "box_6": box(6),
    "box_17": box(17),
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi_binary": spaces.MultiBinary(5),
}


def toy(
    observation: spaces.Space[Any] = VECTOR, action: spaces.Space[Any] = ACTION_SPACES["box_1"], n_envs: int = 4, seed: int = 0
) -> VecEnv:
    """Vectorised :class:`ToyEnv`."""
    return make_vec_env(lambda: ToyEnv(observation, action), n_envs, seed=seed)


def start(model: Any, total_timesteps: int = 10_000) -> Any:
    """Do what ``learn`` does before its loop; return the callback."""
    model.set_logger(Logger(folder=None, output_formats=[]))
    _, callback = model._setup_learn(total_timesteps, None)
    return callback


def collect(model: Any) -> Any:
    """Collect one rollout, starting the model if it was not."""
    callback = start(model) if model._last_obs is None else model._setup_learn(10_000, None, reset_num_timesteps=False)[1]
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model.rollout_buffer


def copy_rollout(source: RolloutBuffer, target: RolloutBuffer) -> None:
    """Put the transitions of one full buffer into another."""
    target.reset()
    for name in ("actions", "rewards", "returns", "episode_starts", "values", "log_probs", "advantages"):
        getattr(target, name)[...] = getattr(source, name)
    if isinstance(source.observations, dict):
        for key, array in source.observations.items():
            target.observations[key][...] = array
    else:
        target.observations[...] = source.observations
    target.pos, target.full = source.pos, source.full


def all_observations(model: Any) -> Any:
    """All observations of the rollout as a tensor (or a dict of them), in the order that an update leaves in the buffer."""

    def flat(array: np.ndarray) -> th.Tensor:
        if not model.rollout_buffer.generator_ready:
            array = array.swapaxes(0, 1).reshape(-1, *array.shape[2:])
        return th.as_tensor(array, device=model.device)

    observations = model.rollout_buffer.observations
    if isinstance(observations, dict):
        return {key: flat(value) for key, value in observations.items()}
    return flat(observations)


def parameter_vector(policy: th.nn.Module) -> th.Tensor:
    """A copy of all parameters, one after the other."""
    return th.cat([parameter.detach().flatten().clone() for parameter in policy.parameters()])


def updated(model: Any) -> Any:
    """Collect a rollout, update, return the log."""
    collect(model)
    model.train()
    return {name.removeprefix("train/"): value for name, value in model.logger.name_to_value.items()}


class Counting(gym.Env):
    """One action is allowed, that of the step's number; another ends with an error. Episodes have 7 steps."""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(4)

    def __init__(self, where: str) -> None:
        self.where, self.n = where, 0
        if where == "method":
            self.action_masks = self.masks

    def masks(self) -> np.ndarray:
        return np.arange(4) == self.n % 4

    def info(self) -> dict[str, Any]:
        return {"action_mask": self.masks()} if self.where == "info" else {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.n = 0
        return np.zeros(2, np.float32), self.info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.masks()[action], f"{action} at step {self.n}"
        self.n += 1
        return np.zeros(2, np.float32), 1.0, self.n == 7, False, self.info()
