"""Tensors for ``callback.locals``, made for all steps of a rollout at once."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch as th
from numpy.typing import DTypeLike
from stable_baselines3.common.utils import obs_as_tensor

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Observations

SMALL_OBSERVATIONS = 4096
"""Bytes, of all environments, that are copied faster than a tensor is made of them."""


TensorsOfSteps: TypeAlias = Callable[[int, Observations[NumpyArray]], Observations[th.Tensor]]
"""(step, observations) ↦ tensors."""


class StepTensors:
    """
    Tensors that ``callback.locals`` shows, one a step, made for all steps at once.

    A step of the environments leaves the caches cold: making three tensors then takes as long as half a forward pass.

    :param shape: (n_steps, ...)
    :param dtype: of NumPy
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.array = np.empty(shape, dtype)
        self.tensors = th.from_numpy(self.array).unbind()

    def __call__(self, step: int, array: Observations[NumpyArray]) -> th.Tensor:
        """
        Show an array.

        :param step: number of the step
        :param array: shape (...,)
        :return: the step's tensor, with the entries of the array; a tensor of its own for an array of another type
        """
        if isinstance(array, np.ndarray) and array.dtype != self.array.dtype:
            return th.from_numpy(array)
        self.array[step] = array
        return self.tensors[step]


def tensors_of_observations(n_steps: int, observations: Observations[NumpyArray], device: th.device) -> TensorsOfSteps:
    """
    What makes tensors of the observations for ``callback.locals``.

    :param n_steps: number of steps to come
    :param observations: as the VecEnv gives them
    :param device: of the policy
    :return: a function of the step's number and its observations; a copy of few numbers on the CPU, a view of many
    """
    if isinstance(observations, np.ndarray) and device.type == "cpu":
        if observations.nbytes <= SMALL_OBSERVATIONS:
            return StepTensors((n_steps, *observations.shape), observations.dtype)
        return lambda step, obs: th.from_numpy(obs)
    return lambda step, obs: obs_as_tensor(obs, device)
