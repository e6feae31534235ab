"""From SB3's rollout buffer to one batch of transitions."""

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_policyopt.engines.engine import Batch


def is_stock(buffer: RolloutBuffer, *methods: str) -> bool:
    """
    Whether a buffer does what SB3's own would do.

    :param buffer: the rollout buffer of an algorithm
    :param methods: the methods in question
    :return: True if the buffer's class inherits them all from SB3
    """
    return all(
        getattr(type(buffer), method) in (getattr(RolloutBuffer, method), getattr(DictRolloutBuffer, method))
        for method in methods
    )


def flattened(buffer: RolloutBuffer) -> Batch:
    """
    All transitions of a full buffer, environment by environment: row env · n_steps + t, as in SB3.

    :param buffer: with arrays of shape (n_steps, n_envs, ...), or already flattened by its own ``get``
    :return: NumPy arrays of shape (n_steps · n_envs, ...); per-sample scalars are (n_steps · n_envs,)
    """

    def flat(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not buffer.generator_ready:
            array = array.swapaxes(0, 1).reshape(-1, *array.shape[2:])
        return array

    observations: Any = buffer.observations
    if isinstance(observations, dict):
        observations = {key: flat(value) for key, value in observations.items()}
    else:
        observations = flat(observations)
    scalars = (buffer.values, buffer.log_probs, buffer.advantages, buffer.returns)
    return Batch(observations, flat(buffer.actions), *(flat(array).reshape(-1) for array in scalars))
