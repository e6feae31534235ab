"""Models on environments of tensors, the same environments through NumPy, and what Gymnasium has since 1.1."""

from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

AutoresetMode: Any = getattr(gym.vector, "AutoresetMode", None)
gymnasium_1_1 = pytest.mark.skipif(AutoresetMode is None, reason="needs Gymnasium 1.1, which says when environments reset")


class ThroughNumpy(VecEnvWrapper):
    """A wrapper that changes nothing, but works with arrays."""

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        return self.venv.step_wait()


def model_on(algorithm: type[Any], env: Any, **options: Any) -> Any:
    return algorithm("MlpPolicy", env, **{"n_steps": 24, "seed": 0, "device": "cpu", **options})
