"""Models on environments of tensors, and the same environments through NumPy."""

from typing import Any

from stable_baselines3.common.vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn


class ThroughNumpy(VecEnvWrapper):
    """A wrapper that changes nothing, but works with arrays."""

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        return self.venv.step_wait()


def model_on(algorithm: type[Any], env: Any, **options: Any) -> Any:
    return algorithm("MlpPolicy", env, **{"n_steps": 24, "seed": 0, "device": "cpu", **options})
