"""
The time of an update by widths and rows, with the threads that a user gets: ``python -m benchmarks.updates``.

Each contender has a process of its own, as the thread pool of one (OpenBLAS's threads go on spinning) slows another in the
same process; they take turns, and a ratio is that of neighbouring turns. PPO: time of a minibatch of an update with four
minibatches; TRPO: time of an update with one pass of the critic. 48 observations, 12 actions, two hidden layers.
"""

import argparse
import importlib
import statistics
import subprocess
import sys
import time
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

CONTENDERS = {"PPO": ("stable_baselines3", "sb3_policyopt"), "TRPO": ("sb3_contrib", "sb3_policyopt")}
PPO_CELLS = [(64, 64), (64, 512), (64, 4096), (64, 16384), (256, 64), (256, 512), (256, 4096), (512, 64), (512, 512)]
TRPO_CELLS = [(64, 2048), (256, 2048)]
MINIBATCHES = 4


class Noise(gym.Env[Any, Any]):
    """Random observations of a robot's size."""

    observation_space, action_space = spaces.Box(-1, 1, (48,), np.float32), spaces.Box(-1, 1, (12,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Nothing but noise."""
        super().reset(seed=seed)
        return self.np_random.standard_normal(48).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Nothing but noise."""
        return self.np_random.standard_normal(48).astype(np.float32), float(self.np_random.random()), False, False, {}


def contender(module: str, algorithm: str, width: int, rows: int) -> None:
    """
    Answer each line on standard input with the seconds of one update.

    :param module: where the algorithm is from
    :param algorithm: "PPO" or "TRPO"
    :param width: of both hidden layers
    :param rows: of a minibatch of PPO, of the rollout of TRPO
    """
    warnings.filterwarnings("ignore")
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import DummyVecEnv

    n_envs = 16
    n_steps = rows * (MINIBATCHES if algorithm == "PPO" else 1) // n_envs
    options = {"n_epochs": 1, "batch_size": rows} if algorithm == "PPO" else {"n_critic_updates": 1, "batch_size": 128}
    cls = getattr(importlib.import_module(module), algorithm)
    env = DummyVecEnv([Noise] * n_envs)
    model = cls("MlpPolicy", env, n_steps=n_steps, policy_kwargs={"net_arch": [width, width]}, seed=0, device="cpu", **options)
    model.set_logger(Logger(None, []))
    _, callback = model._setup_learn(10**9, None)
    model.collect_rollouts(env, callback, model.rollout_buffer, n_steps)
    model.train()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        model.train()
        print((time.perf_counter() - started) / (MINIBATCHES if algorithm == "PPO" else 1), flush=True)


def measure(algorithm: str, width: int, rows: int, turns: int) -> tuple[list[float], list[float]]:
    """
    Seconds of the contenders in turn.

    :param algorithm: "PPO" or "TRPO"
    :param width: of both hidden layers
    :param rows: see :func:`contender`
    :param turns: number of turns
    :return: stock's and ours
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.updates", "--contender", module, algorithm, str(width), str(rows)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for module in CONTENDERS[algorithm]
    ]
    seconds: tuple[list[float], list[float]] = ([], [])
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for _ in range(turns):
        for process, of_contender in zip(processes, seconds, strict=True):
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            of_contender.append(float(process.stdout.readline()))
            time.sleep(0.05)  # threads that spin after a product come to rest
    for process in processes:
        process.communicate()
    return seconds


def main() -> None:
    """Print one line a cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15, help="turns a cell (default: 15)")
    parser.add_argument("--contender", nargs=4, metavar=("MODULE", "ALGORITHM", "WIDTH", "ROWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        module, algorithm, width, rows = arguments.contender
        contender(module, algorithm, int(width), int(rows))
        return
    print("algorithm  width   rows   stock ms   ours ms   stock/ours (quartiles)")
    for algorithm, cells in (("PPO", PPO_CELLS), ("TRPO", TRPO_CELLS)):
        for width, rows in cells:
            stock, ours = measure(algorithm, width, rows, arguments.turns)
            low, middle, high = statistics.quantiles([s / o for s, o in zip(stock, ours, strict=True)], n=4)
            times = f"{statistics.median(stock) * 1e3:10.2f} {statistics.median(ours) * 1e3:9.2f}"
            print(f"{algorithm:9} {width:6} {rows:6} {times}   {middle:5.2f} ({low:.2f}-{high:.2f})", flush=True)


if __name__ == "__main__":
    main()
