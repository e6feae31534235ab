"""
What the guards against non-finite numbers cost: ``python -m benchmarks.guards``.

On a shared machine a percent is lost in the noise between two trainings, so the time inside the guards is added up within one:
the looks at actions, last values and stored steps, and the bounded log-ratios (with the difference that they bound, so that
the share is an upper limit). The clocks around them count, too.
"""

import os
import time
import timeit
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
from sb3_policyopt.maths import losses  # noqa: E402
from sb3_policyopt.objectives import Objective  # noqa: E402
from sb3_policyopt.rollout import finiteness as guards  # noqa: E402

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
        mock.patch("sb3_policyopt.rollout.collect.is_finite", clock.around(guards.is_finite)),
        mock.patch("sb3_policyopt.rollout.finiteness.check_rows", clock.around(guards.check_rows)),
        mock.patch("sb3_policyopt.maths.losses.log_ratio", clock.around(losses.log_ratio)),
    ):
        start = time.perf_counter()
        model.learn(ITERATIONS * ROLLOUT, reset_num_timesteps=False)
        return clock.seconds / (time.perf_counter() - start)


def checks(policy: str) -> dict[str, float]:
    """
    What it costs to see that the policy is still what the engine was made for: the fastest of many calls, in µs.

    :param policy: "MlpPolicy"
    :return: of a step of the environments, of its parts, and of a minibatch beside the minibatch itself
    """
    model = sb3_policyopt.PPO(policy, make_vec_env("CartPole-v1", 8, seed=0), n_steps=256, seed=0, device="cpu").learn(2048)
    engine = model.engine_in_use
    objective = Objective.of(model.loss, model.current_coefficients())
    batch = next(engine.data(model.rollout_buffer).minibatches(64, True))

    with engine.updating(64) as optimiser:

        def minibatch() -> None:
            engine.gradient(objective, batch)
            optimiser.step(0.5, 0.0)

        minibatch()
        fused = optimiser.fused
        return {
            f"{policy}, {len(engine.flat.parameters)} parameters: check of a step": fastest(
                lambda: model.current_engine(False)
            ),
            "check of a step with a callback": fastest(model.current_engine),
            "check of a minibatch": fastest(lambda: engine.flat.bring(False)),
            "check of a pass": fastest(engine.flat.bring) + fastest(fused.is_bound),
            "minibatch of 64 rows": fastest(minibatch, 20),
        }


def fastest(function: Callable[[], Any], calls: int = 200) -> float:
    """
    The fastest of many runs, which a busy machine disturbs least.

    :param function: without arguments
    :param calls: a run
    :return: µs a call
    """
    return min(timeit.repeat(function, number=calls, repeat=100)) / calls * 1e6


def main() -> None:
    """Measure every combination."""
    th.set_num_threads(1)
    for name, microseconds in checks("MlpPolicy").items():
        print(f"{name}: {microseconds:.2f} µs", flush=True)
    for algorithm in ("PPO", "TRPO"):
        for env_id in ("CartPole-v1", "HalfCheetah-v5"):
            for n_envs in (1, 8):
                print(f"{algorithm:5} {env_id} x{n_envs}: {share(algorithm, env_id, n_envs):.2%} of the time", flush=True)


if __name__ == "__main__":
    main()
