"""What a rollout needs of environments that give and take tensors; :mod:`sb3_policyopt.envs.tensors` has such."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias, TypeGuard

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt.rollout.batch import Observations

StepOfTensors: TypeAlias = tuple[Observations[th.Tensor], th.Tensor, th.Tensor, th.Tensor, dict[str, Any]]
"""Observations, rewards, terminated, truncated, extras."""


class TensorEnv(Protocol):
    """The side of :class:`sb3_policyopt.envs.tensors.TensorVecEnv` that gives and takes tensors."""

    num_envs: int
    action_space: spaces.Space[Any]
    bootstrap: Literal["final", "previous", "none"]

    @property
    def device(self) -> th.device:
        """Where tensors are."""

    def step_tensors(self, actions: th.Tensor) -> StepOfTensors:
        """Do a step in all environments."""

    def returned_space(self) -> spaces.Space[Any]:
        """The observation space with the types of what is returned."""


def type_of_actions(space: spaces.Space[Any]) -> th.dtype:
    """
    The type of the actions that ``step_tensors`` takes.

    :param space: of one action
    :return: int64 for Discrete and MultiDiscrete, else the type of the space
    """
    integers = isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
    return th.from_numpy(np.empty(0, np.int64 if integers else space.dtype)).dtype


def resets_of(env: object, extras: Mapping[str, Any]) -> th.Tensor | None:
    """
    Which environments only reset themselves in a step.

    :param env: environments that give tensors
    :param extras: of the step
    :return: bool, shape (n_envs,); None for those that reset themselves in the step that ends an episode
    :raises ValueError: if the environments promise to tell and do not
    """
    resets: th.Tensor | None = extras.get("reset_rows")
    if resets is None and getattr(env, "autoreset_mode", "same_step") == "next_step":
        raise ValueError(
            f"{type(env).__name__}: autoreset_mode is 'next_step', so step_tensors has to tell in extras['reset_rows'] which "
            "environments only reset themselves in this step: bool, shape (n_envs,)"
        )
    return resets


def is_tensor_env(env: VecEnv | None) -> TypeGuard[TensorEnv]:
    """
    Whether a rollout of this environment can stay on the device.

    Its class is asked: a wrapper of SB3 around a tensor environment forwards attributes, but works with arrays.

    :param env: any
    :return: True if the class defines ``step_tensors`` and ``reset_tensors``
    """
    return all(callable(getattr(type(env), name, None)) for name in ("step_tensors", "reset_tensors"))
