"""One number on the spot: environment steps per second of ``learn()`` with MlpPolicy and 2048 steps a rollout, one thread."""

import os
import sys
import time
import warnings

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
warnings.filterwarnings("ignore")

import importlib  # noqa: E402

import torch as th  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402


def main(module: str, algorithm: str, env_id: str, n_envs: int) -> None:
    """
    Train two rollouts to warm up and six to measure.

    :param module: "sb3_policyopt", "stable_baselines3" or "sb3_contrib"
    :param algorithm: "PPO" or "TRPO"
    :param env_id: environment
    :param n_envs: number of environments
    """
    th.set_num_threads(1)
    cls = getattr(importlib.import_module(module), algorithm)
    model = cls("MlpPolicy", make_vec_env(env_id, n_envs, seed=0), n_steps=2048 // n_envs, seed=0, device="cpu")
    model.learn(2 * 2048)
    started = time.perf_counter()
    model.learn(6 * 2048)
    print(f"{module:18} {algorithm:5} {env_id} x{n_envs}: {6 * 2048 / (time.perf_counter() - started):8.0f} steps/s")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
