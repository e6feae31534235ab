"""
A training with resumable checkpoints, in which rank 1 may be killed once: ``resumes.py FOLDER TOTAL_TIMESTEPS [KILLED_AT]``.

Every rank writes what it came to into the folder.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_policyopt import TRPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback
from sb3_policyopt.parallel import launcher


class KillOnce(BaseCallback):
    """Kill rank 1 at a timestep, unless the launcher has restarted it."""

    def __init__(self, timestep: int) -> None:
        super().__init__()
        self.timestep = timestep

    def _on_step(self) -> bool:
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if first and launcher.rank() == 1 and self.num_timesteps >= self.timestep:
            os.kill(os.getpid(), signal.SIGKILL)
        return True


if __name__ == "__main__":
    th.set_num_threads(1)
    folder, total_timesteps = Path(sys.argv[1]), int(sys.argv[2])
    callbacks: list[BaseCallback] = [ResumableCheckpointCallback(folder / "checkpoints", save_freq=128)]
    if len(sys.argv) > 3:
        callbacks.append(KillOnce(int(sys.argv[3])))
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2))
    model = TRPO("MlpPolicy", env, n_steps=32, batch_size=32, n_critic_updates=2, seed=0)
    model.learn(total_timesteps, callback=callbacks)
    parameters = th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().cpu().numpy()
    running = env.obs_rms
    assert isinstance(running, RunningMeanStd)
    result: dict[str, Any] = {
        "parameters": parameters,
        "timesteps": model.num_timesteps,
        "mean": running.mean,
        "last": model._last_obs,
    }
    np.savez(folder / f"{launcher.rank()}.npz", **result)
