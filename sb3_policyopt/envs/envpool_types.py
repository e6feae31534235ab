"""What is used of EnvPool, which has no types of its own."""

import importlib
from types import ModuleType
from typing import Protocol, TypeAlias

import numpy as np
from gymnasium import spaces

Observations: TypeAlias = np.ndarray | dict[str, np.ndarray]
PoolInfo: TypeAlias = dict[str, np.ndarray]
PoolStep: TypeAlias = tuple[Observations, np.ndarray, np.ndarray, np.ndarray, PoolInfo]
"""Observations, rewards, terminated, truncated and infos, one row for each environment."""


class PoolConfig(Protocol):
    """EnvPool's settings of a task."""

    max_num_players: int
    max_episode_steps: int
    episodic_life: bool
    """Of Atari alone."""


class PoolSpec(Protocol):
    """EnvPool's specification of a task."""

    config: PoolConfig
    gymnasium_observation_space: spaces.Space[object]
    gymnasium_action_space: spaces.Space[object]


class Pool(Protocol):
    """Environments of EnvPool."""

    observation_space: spaces.Space[object]

    def reset(self, env_id: np.ndarray | None = None) -> tuple[Observations, PoolInfo]:
        """
        Reset environments.

        :param env_id: their numbers; all by default
        """

    def send(self, action: np.ndarray) -> None:
        """
        Begin a step of all environments.

        :param action: of each
        """

    def recv(self) -> PoolStep:
        """Wait for the end of the step."""

    def step(self, action: np.ndarray, env_id: np.ndarray) -> PoolStep:
        """
        Step some environments.

        :param action: of each
        :param env_id: their numbers
        """

    def render(self, env_ids: np.ndarray) -> np.ndarray:
        """
        Pictures.

        :param env_ids: numbers of the environments
        """


def import_envpool() -> ModuleType:
    """
    The package.

    :return: ``envpool``
    :raises ImportError: if it is not installed
    """
    try:
        return importlib.import_module("envpool")
    except ImportError as error:
        raise ImportError("EnvPool is not installed: pip install 'sb3-policyopt[envpool]', on Python 3.11 or newer") from error
