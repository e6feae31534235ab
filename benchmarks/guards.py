"""
What the guards against non-finite numbers cost: ``python -m benchmarks.guards``.

The same algorithm trains one iteration with its guards and one without, in turn, many times. The ratio of processor time is
taken pair by pair; the median and the quartiles over the pairs are printed. Without guards means: no look at values,
log-probabilities, actions, rewards and observations in the rollout, and no bound on log-ratios.
"""

import argparse
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import quantiles
from unittest import mock

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
warnings.filterwarnings("ignore")

import torch as th  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402

import sb3_policyopt  # noqa: E402

ROLLOUT = 2048


@contextmanager
def unguarded() -> Iterator[None]:
    """Within this context, nothing is checked."""
    with (
        mock.patch("sb3_policyopt.rollout.is_finite", lambda *vectors: True),
        mock.patch("sb3_policyopt.rollout.check_rows", lambda buffer, start, stop: None),
        mock.patch("sb3_policyopt.maths.losses.log_ratio", lambda log_prob, old_log_prob: log_prob - old_log_prob),
        mock.patch("math.isfinite", lambda number: True),
    ):
        yield


def seconds(model: sb3_policyopt.PPO) -> float:
    """Processor time of one iteration."""
    start = time.process_time()
    model.learn(ROLLOUT, reset_num_timesteps=False)
    return time.process_time() - start


def main() -> None:
    """Measure every combination."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=60)
    options = parser.parse_args()
    th.set_num_threads(1)
    for algorithm in ("PPO", "TRPO"):
        for env_id in ("CartPole-v1", "HalfCheetah-v5"):
            for n_envs in (1, 8):
                env = make_vec_env(env_id, n_envs, seed=0)
                model = getattr(sb3_policyopt, algorithm)("MlpPolicy", env, n_steps=ROLLOUT // n_envs, seed=0, device="cpu")
                model.learn(2 * ROLLOUT)
                ratios = []
                for pair in range(options.pairs):
                    with_guards = seconds(model) if pair % 2 else None  # who goes first alternates
                    with unguarded():
                        without = seconds(model)
                    ratios.append((with_guards or seconds(model)) / without)
                lower, middle, upper = (100 * (ratio - 1) for ratio in quantiles(ratios, n=4))
                print(
                    f"{algorithm:5} {env_id} x{n_envs}: guards cost {middle:+.1f} % ({lower:+.1f} to {upper:+.1f})", flush=True
                )


if __name__ == "__main__":
    main()
