"""
What the guards against non-finite numbers cost: ``python -m benchmarks.guards``.

On a shared machine a percent is lost in the noise between two trainings, so the time inside the guards is added up within one:
the looks at actions, last values and stored steps, and the bounded log-ratios (with the difference that they bound, so that
the share is an upper limit). The clocks around them count, too.
"""

import os
import time
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
warnings.filterwarnings("ignore")

import torch as th  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402

import sb3_policyopt  # noqa: E402
from sb3_policyopt import guards  # noqa: E402
from sb3_policyopt.maths import losses  # noqa: E402

ROLLOUT, ITERATIONS = 2048, 8


class Clock:
    """Adds up the time spent in functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - start
            return result

        return timed


def share(algorithm: str, env_id: str, n_envs: int) -> float:
    """The share of the guards in the time of ``learn()``."""
    env = make_vec_env(env_id, n_envs, seed=0)
    model = getattr(sb3_policyopt, algorithm)("MlpPolicy", env, n_steps=ROLLOUT // n_envs, seed=0, device="cpu")
    model.learn(2 * ROLLOUT)
    clock = Clock()
    with (
        mock.patch("sb3_policyopt.rollout.is_finite", clock.around(guards.is_finite)),
        mock.patch("sb3_policyopt.guards.check_rows", clock.around(guards.check_rows)),
        mock.patch("sb3_policyopt.maths.losses.log_ratio", clock.around(losses.log_ratio)),
    ):
        start = time.perf_counter()
        model.learn(ITERATIONS * ROLLOUT, reset_num_timesteps=False)
        return clock.seconds / (time.perf_counter() - start)


def main() -> None:
    """Measure every combination."""
    th.set_num_threads(1)
    for algorithm in ("PPO", "TRPO"):
        for env_id in ("CartPole-v1", "HalfCheetah-v5"):
            for n_envs in (1, 8):
                print(f"{algorithm:5} {env_id} x{n_envs}: {share(algorithm, env_id, n_envs):.2%} of the time", flush=True)


if __name__ == "__main__":
    main()
