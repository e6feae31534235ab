"""
The time of an update by widths and rows: ``python -m benchmarks.updates``, or ``python -m benchmarks --sweep``.

With the threads that a user gets, or with ``--threads 1``. Each contender has a process of its own, as the thread pool of one
(OpenBLAS's threads go on spinning) slows another in the same process; they take turns, and a ratio is that of neighbouring
turns. PPO: time of a minibatch of an update with four minibatches; TRPO: time of an update with one pass of the critic.
48 observations, 12 actions, two hidden layers, random transitions; "images" are 84 × 84 × 4 for CnnPolicy, with
6 actions. The exit status is 1 if a cell is slower than stock.
"""

import argparse
import importlib
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

CONTENDERS = {"PPO": ("stable_baselines3", "sb3_policyopt"), "TRPO": ("sb3_contrib", "sb3_policyopt")}
WIDTHS, ROWS = (64, 256, 512), (64, 512, 4096, 16384)
VARIANTS = ("gsde", "adamw", "micro", "loss")
"""gSDE, AdamW; and of ours ``micro_batch_size`` and an overridden hook, against stock as it is. Beside them "images"."""
MINIBATCHES, N_ENVS, REST = 4, 16, 0.15
"""Of PPO's update; of the buffer; and seconds between turns, in which the threads of a pool come to rest."""


class Cell(NamedTuple):
    """
    What is measured.

    :param algorithm: "PPO" or "TRPO"
    :param width: of both hidden layers
    :param rows: of a minibatch of PPO, of the rollout of TRPO
    :param variant: one of ``VARIANTS``, "images" or "plain"
    """

    algorithm: str
    width: int
    rows: int
    variant: str = "plain"

    @property
    def name(self) -> str:
        """As ``--only`` finds it."""
        return "-".join(map(str, self))


CELLS = [Cell(algorithm, width, rows) for algorithm in CONTENDERS for width in WIDTHS for rows in ROWS]
CELLS += [Cell(algorithm, 64, 512, variant) for algorithm in CONTENDERS for variant in VARIANTS]
CELLS += [Cell("PPO", 512, 128, "images"), Cell("TRPO", 512, 512, "images")]


class Robot(gym.Env[Any, Any]):
    """Spaces of a robot's size."""

    observation_space: spaces.Space[Any] = spaces.Box(-1, 1, (48,), np.float32)
    action_space: spaces.Space[Any] = spaces.Box(-1, 1, (12,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Zeros."""
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), {}


class Screen(Robot):
    """Spaces of an Atari game's stacked frames."""

    observation_space, action_space = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6)


def overridden(hook: Callable[..., Any]) -> Callable[..., Any]:
    """
    A hook of a subclass.

    :param hook: of the class
    :return: another function that computes the same
    """
    return lambda self, *arguments: hook(self, *arguments)


def make_model(module: str, cell: Cell) -> Any:
    """
    A contender.

    :param module: where the algorithm is from
    :param cell: what is measured
    :return: the algorithm, with a full buffer
    """
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.vec_env import DummyVecEnv

    cls, ours = getattr(importlib.import_module(module), cell.algorithm), module == "sb3_policyopt"
    images = cell.variant == "images"
    policy_kwargs: dict[str, Any] = {} if images else {"net_arch": [cell.width, cell.width]}
    if cell.variant == "adamw":
        policy_kwargs["optimizer_class"] = th.optim.AdamW
    options: dict[str, Any] = {"micro_batch_size": 256} if ours and cell.variant == "micro" else {}
    if ours and cell.variant == "loss":  # overrides that compute the same
        cls = type("Own", (cls,), {name: overridden(getattr(cls, name)) for name in cls.hooks})
    if cell.algorithm == "PPO":
        options |= {"n_epochs": 1, "batch_size": cell.rows, "n_steps": max(1, cell.rows * MINIBATCHES // N_ENVS)}
    else:
        options |= {"n_critic_updates": 1, "batch_size": min(128, cell.rows), "n_steps": max(1, cell.rows // N_ENVS)}
    env, sde = DummyVecEnv([Screen if images else Robot] * N_ENVS), cell.variant == "gsde"
    model = cls(
        "CnnPolicy" if images else "MlpPolicy", env, policy_kwargs=policy_kwargs, use_sde=sde, seed=0, device="cpu", **options
    )
    model.set_logger(Logger(None, []))
    model._setup_learn(10**9, None)
    fill(model)
    return model


def fill(model: Any) -> None:
    """
    Random transitions.

    :param model: whose rollout buffer is filled
    """
    buffer, policy, random = model.rollout_buffer, model.policy, np.random.default_rng(0)
    for name in ("observations", "actions", "advantages", "returns"):
        array = getattr(buffer, name)
        array[...] = random.standard_normal(array.shape)
    if isinstance(buffer.action_space, spaces.Discrete):
        buffer.observations[...] = random.integers(0, 256, buffer.observations.shape)
        buffer.actions[...] = random.integers(0, buffer.action_space.n, buffer.actions.shape)
    steps = zip(buffer.observations, buffer.actions.reshape(-1, N_ENVS, *buffer.action_space.shape), strict=True)
    with th.no_grad():
        parts = [policy.evaluate_actions(th.as_tensor(seen), th.as_tensor(taken))[:2] for seen, taken in steps]
    buffer.values[...] = th.stack([values for values, _ in parts]).reshape(buffer.values.shape)
    buffer.log_probs[...] = th.stack([log_prob for _, log_prob in parts]).reshape(buffer.log_probs.shape)
    buffer.pos, buffer.full = buffer.buffer_size, True


def contender(module: str, cell: Cell) -> None:
    """
    Answer each line on standard input with the seconds of one update.

    :param module: where the algorithm is from
    :param cell: what is measured
    """
    warnings.filterwarnings("ignore")
    model = make_model(module, cell)
    model.train()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        model.train()
        print((time.perf_counter() - started) / (MINIBATCHES if cell.algorithm == "PPO" else 1), flush=True)


def measure(cell: Cell, turns: int, threads: int | None) -> tuple[list[float], list[float]]:
    """
    Seconds of the contenders in turn.

    :param cell: what is measured
    :param turns: number of turns
    :param threads: of all libraries, None for their defaults
    :return: stock's and ours
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = dict(os.environ) if threads is None else {**os.environ, **dict.fromkeys(names, str(threads))}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.updates", "--contender", module, *map(str, cell)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for module in CONTENDERS[cell.algorithm]
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
            time.sleep(REST)
    for process in processes:
        process.communicate()
    return seconds


def sweep(cells: list[Cell], turns: int, threads: int | None) -> bool:
    """
    Print one line a cell.

    :param cells: what is measured
    :param turns: number of turns a cell
    :param threads: of all libraries, None for their defaults
    :return: whether no cell is slower than stock
    """
    print("algorithm  width   rows  variant   stock ms   ours ms   stock/ours (quartiles)   of the fastest turns")
    never_slower = True
    for cell in cells:
        stock, ours = measure(cell, turns, threads)
        low, middle, high = statistics.quantiles([s / o for s, o in zip(stock, ours, strict=True)], n=4)
        times = f"{statistics.median(stock) * 1e3:10.2f} {statistics.median(ours) * 1e3:9.2f}"
        name = f"{cell.algorithm:9} {cell.width:6} {cell.rows:6}  {cell.variant:7}"
        print(f"{name} {times}   {middle:5.2f} ({low:.2f}-{high:.2f})   {min(stock) / min(ours):5.2f}", flush=True)
        never_slower = never_slower and middle >= 1
    return never_slower


def main() -> None:
    """Measure the cells that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="turns a cell (default: 15)")
    parser.add_argument("--threads", type=int, help="of all libraries (default: theirs)")
    parser.add_argument("--only", default="", metavar="REGEX", help="cells such as PPO-256-512-plain")
    parser.add_argument("--contender", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        module, algorithm, width, rows, variant = arguments.contender
        contender(module, Cell(algorithm, int(width), int(rows), variant))
        return
    cells = [cell for cell in CELLS if re.search(arguments.only, cell.name)]
    sys.exit(0 if sweep(cells, arguments.turns, arguments.threads) else 1)


if __name__ == "__main__":
    main()
