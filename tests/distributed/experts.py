"""
A training in which the observations decide which parameters are used: an expert for each task, and ranks on different tasks.
``experts.py FOLDER``, run by every rank, trains all cases and saves what came out; imported, it trains them in one process.

As on the tapes of ``tape.py``, observations, rewards and actions do not depend on who collects them.
"""

import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from tape import InOneProcess, OnTape, order

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.parallel import launcher

N_STEPS = 12
"""Of an iteration, as in ``tape.py``."""

ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "PPO": (PPO, {"n_epochs": 3, "learning_rate": 1e-3}),
    "TRPO": (TRPO, {"n_critic_updates": 2, "target_kl": 0.02}),
}
CASES = [
    f"{algorithm}-{engine}-{way}" for algorithm, engine, way in product(ALGORITHMS, ("hybrid", "autograd"), ("even", "uneven"))
]
"""In the uneven ones rank 1 has fewer minibatches, and takes part in the last ones with none."""


class Task(gym.Env):
    """Standard normal observations whose first entry is the task; one long episode."""

    def __init__(self, task: int) -> None:
        self.observation_space, self.action_space = spaces.Box(-10, 10, (3,), np.float32), spaces.Discrete(3)
        random = np.random.default_rng(task)
        self.observations = random.normal(size=(100, 3)).astype(np.float32)
        self.observations[:, 0] = task
        self.rewards = random.normal(size=100)
        self.position = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observations[self.position], {}

    def step(self, action: Any) -> Any:
        self.position += 1
        return self.observations[self.position], self.rewards[self.position], False, False, {}


class Experts(BaseFeaturesExtractor):
    """One layer for each task. Those of the tasks that a batch does not have are not part of its graph."""

    def __init__(self, observation_space: spaces.Box, n_tasks: int = 3) -> None:
        super().__init__(observation_space, features_dim=4)
        self.experts = th.nn.ModuleList([th.nn.Linear(3, 4) for _ in range(n_tasks)])

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features = observations.new_zeros(len(observations), 4)
        for task, expert in enumerate(self.experts):
            rows = observations[:, 0] == task
            if rows.any():
                features[rows] = th.tanh(expert(observations[rows]))
        return features


def build(case: str, tasks: list[int], *mixins: type) -> Any:
    name, engine, _ = case.split("-")
    algorithm, arguments = ALGORITHMS[name]
    model = type(f"{name}OnTape", (*mixins, OnTape, algorithm), {})(
        "MlpPolicy",
        DummyVecEnv([partial(Task, task) for task in tasks]),
        n_steps=N_STEPS,
        batch_size=4,
        engine=engine,
        seed=3,
        device="cpu",
        policy_kwargs={"net_arch": [8], "features_extractor_class": Experts},
        **arguments,
    )
    model.engine_name, model.numbers, model.bad_tape = engine, tasks, None
    model.tapes = [np.random.default_rng(100 + task).integers(3, size=100) for task in tasks]
    return model


def batch_sizes(case: str) -> list[int]:
    return [4, 12] if case.endswith("uneven") else [4, 4]


def results(model: Any) -> dict[str, Any]:
    """Parameters by name, and how often each was stepped."""
    state = model.policy.optimizer.state
    named = dict(model.policy.named_parameters())
    return {
        "parameters": {name: parameter.detach().numpy().copy() for name, parameter in named.items()},
        "steps": {name: int(state[parameter]["step"]) if state.get(parameter) else 0 for name, parameter in named.items()},
    }


def train_in_one_process(case: str) -> dict[str, Any]:
    model = build(case, [0, 1], InOneProcess)
    model.rank_n_envs, model.rank_batch_sizes, model.n_passes = [1, 1], batch_sizes(case), 0
    return results(model.learn(3 * N_STEPS * 2))


def train_on_this_rank(case: str) -> dict[str, Any]:
    rank = launcher.rank()
    model = build(case, [rank])
    model.batch_size = batch_sizes(case)[rank]
    passes = iter(range(1000))
    original, np.random.permutation = np.random.permutation, lambda size: order(rank, next(passes), size)
    try:
        return results(model.learn(3 * N_STEPS * 2))
    finally:
        np.random.permutation = original


if __name__ == "__main__":
    th.set_num_threads(1)
    th.save({case: train_on_this_rank(case) for case in CASES}, Path(sys.argv[1]) / f"{launcher.rank()}.pt")
