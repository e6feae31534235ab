"""
Trainings whose data do not depend on who collects them: environment number i plays tape i, whatever the actions, and the
actions are on the tape, too. So one process with all environments sees what several ranks see together.

Run as a script by every rank, ``tape.py FOLDER WAY``, it trains all cases and saves what came out; imported, it trains the
same in one process. For what the ways are see ``exchanges.py``.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch as th
from exchanges import take
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch.distributions import kl_divergence

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.models.model import Decision
from sb3_policyopt.parallel import launcher

ACTIONS: dict[str, spaces.Space[Any]] = {"box": spaces.Box(-1, 1, (2,), np.float32), "discrete": spaces.Discrete(3)}
TAPE = 400
N_STEPS = 12


class Tape(gym.Env):
    """Standard normal observations and rewards; an episode ends after a fixed number of steps, by turns in both ways."""

    def __init__(self, number: int, actions: str, constant: bool) -> None:
        self.observation_space = spaces.Box(-10, 10, (3,), np.float32)
        self.action_space = ACTIONS[actions]
        random = np.random.default_rng(number)
        self.observations = random.normal(size=(TAPE, 3)).astype(np.float32)
        self.rewards = random.normal(size=TAPE)
        if constant:
            self.observations[:], self.rewards[:] = 0.5, 1.0
        self.length = 1000 if constant else 5 + number
        self.position = self.age = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.age = 0
        return self.observations[self.position], {}

    def step(self, action: Any) -> Any:
        self.position += 1
        self.age += 1
        ended, by_time = self.age >= self.length, bool(self.position % 2)
        return self.observations[self.position], self.rewards[self.position], ended and not by_time, ended and by_time, {}


class Learned(BaseFeaturesExtractor):
    """Features that are learned, for which the hybrid engine needs torch."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=4)
        self.layer = th.nn.Linear(3, 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.tanh(self.layer(observations))


@dataclass(frozen=True)
class Case:
    """One training: ``n_envs`` and ``batch_sizes`` of each rank (taken in turn if there are more ranks)."""

    algorithm: type
    engine: str
    actions: str = "box"
    n_envs: tuple[int, ...] = (2,)
    batch_sizes: tuple[int, ...] = (8,)
    constant_rank: int | None = None
    bad_tape: int | None = None
    normalized: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    def of(self, numbers: tuple[int, ...], world_size: int) -> list[int]:
        return [numbers[rank % len(numbers)] for rank in range(world_size)]


PPO_ARGUMENTS = {"n_epochs": 3, "learning_rate": 1e-3, "ent_coef": 0.01, "clip_range_vf": 0.3}
TRPO_ARGUMENTS = {"n_critic_updates": 2, "target_kl": 0.02}
CASES = {
    f"{name}-{algorithm.__name__}-{engine}": Case(algorithm, engine, **given, arguments={**arguments, **more})
    for algorithm, arguments in ((PPO, PPO_ARGUMENTS), (TRPO, TRPO_ARGUMENTS))
    for engine in ("closed_form", "hybrid", "autograd")
    for name, given, more in (
        ("even", {}, {}),
        ("last_minibatch_smaller", {"actions": "discrete", "batch_sizes": (10,)}, {}),
        ("ranks_of_different_size", {"n_envs": (3, 1, 2), "batch_sizes": (8, 10, 5)}, {}),
        ("one_rank_constant", {"constant_rank": 1}, {}),
        ("one_transition_not_finite", {"bad_tape": 1}, {}),
        ("stopped_by_kl", {}, {"target_kl": 1e-5} if algorithm is PPO else {"sub_sampling_factor": 2}),
    )
}
NORMALIZED = Case(PPO, "closed_form", normalized=True, arguments=PPO_ARGUMENTS)


def order(rank: int, number: int, size: int) -> np.ndarray:
    """The order in which a rank takes its transitions in its n-th pass."""
    return np.random.RandomState(1000 * rank + number).permutation(size)


if TYPE_CHECKING:
    MixedIn: Any  # what a class has that it is mixed into, is not known here
else:
    MixedIn = object


class OnTape(MixedIn):
    """Mixed into an algorithm: acts as the tape says."""

    def prepare_engine(self) -> Any:
        engine = super().prepare_engine()
        assert engine.name == self.engine_name
        engine.act = self.act_by_tape
        return engine

    def act_by_tape(self, observations: Any, context: Any) -> Any:
        positions = self.env.get_attr("position")
        actions = np.stack([self.tapes[i][position] for i, position in enumerate(positions)])
        with th.no_grad():
            values, log_prob, _ = self.policy.evaluate_actions(th.as_tensor(observations), th.as_tensor(actions))
        return Decision(actions, values.flatten().cpu().numpy(), log_prob.cpu().numpy())

    def train(self) -> None:
        """Remember the mean KL of the last update over this process's states, by torch's own formula."""
        if self.bad_tape in self.numbers:
            self.rollout_buffer.returns[0, self.numbers.index(self.bad_tape)] = np.nan
        states = th.as_tensor(self.rollout_buffer.observations.reshape(-1, 3))
        with th.no_grad():
            before = self.policy.get_distribution(states).distribution
            before = type(before)(*((before.mean, before.stddev) if hasattr(before, "loc") else (before.probs,)))
        super().train()
        with th.no_grad():
            kl = kl_divergence(before, self.policy.get_distribution(states).distribution)
        self.kl_sum, self.n_states = kl.sum().item(), len(states)
        self.last_metrics = dict(self.logger.name_to_value)


class InOneProcess(MixedIn):
    """Mixed into an algorithm: takes in one minibatch what the ranks take at a time."""

    def passes(self, data: Any, n_passes: int, normalized: bool = False) -> Iterator[Iterator[Any]]:
        (rollout,) = data.whole()
        return (self.one_pass(rollout, normalized and self.normalize_advantage) for _ in range(n_passes))

    def one_pass(self, rollout: Any, normalized: Any) -> Iterator[Any]:
        parts, start = [], 0
        for rank, (n_envs, size) in enumerate(zip(self.rank_n_envs, self.rank_batch_sizes, strict=True)):
            rows = start + order(rank, self.n_passes, n_envs * N_STEPS)
            parts.append([rows[first : first + size] for first in range(0, len(rows), size)])
            start += len(rows)
        self.n_passes += 1
        for k in range(max(map(len, parts))):
            batch = rollout.rows(np.concatenate([part[k] for part in parts if k < len(part)]))
            yield batch.normalized() if normalized else batch


def monitored(number: int, actions: str, constant: bool) -> gym.Env[Any, Any]:
    return Monitor(Tape(number, actions, constant))


def build(case: Case, numbers: range, ranks: list[int], *mixins: type) -> Any:
    """
    :param case: what to train
    :param numbers: of the tapes
    :param ranks: to which rank each of them belongs
    :param mixins: how
    """
    envs: list[Callable[[], gym.Env[Any, Any]]] = [
        partial(monitored, number, case.actions, rank == case.constant_rank)
        for number, rank in zip(numbers, ranks, strict=True)
    ]
    algorithm = type(f"{case.algorithm.__name__}OnTape", (*mixins, OnTape, case.algorithm), {})
    model = algorithm(
        "MlpPolicy",
        VecNormalize(DummyVecEnv(envs)) if case.normalized else DummyVecEnv(envs),
        n_steps=N_STEPS,
        engine="auto" if case.engine == "hybrid" else case.engine,
        seed=3,
        policy_kwargs={"net_arch": [16, 16], **({"features_extractor_class": Learned} if case.engine == "hybrid" else {})},
        **case.arguments,
        batch_size=case.of(case.batch_sizes, 1)[0],
    )
    model.engine_name = case.engine
    model.tapes, model.numbers, model.bad_tape = [], numbers, case.bad_tape
    for number in numbers:
        random = np.random.default_rng(10_000 + number)
        box = random.normal(size=(TAPE, 2)).astype(np.float32)
        model.tapes.append(box if case.actions == "box" else random.integers(3, size=TAPE))
    return model


def results(model: Any) -> dict[str, Any]:
    optimizer = model.policy.optimizer.state_dict()["state"]
    env = model.get_vec_normalize_env()
    return {
        "running_moments": [np.hstack((rms.mean, rms.var, rms.count)) for rms in ((env.obs_rms, env.ret_rms) if env else ())],
        "parameters": np.concatenate([p.detach().cpu().numpy().ravel() for p in model.policy.parameters()]),
        "moments": np.concatenate([state["exp_avg_sq"].cpu().numpy().ravel() for _, state in sorted(optimizer.items())]),
        "num_timesteps": model.num_timesteps,
        "kl": (model.kl_sum, model.n_states),
        "metrics": {key: value for key, value in model.last_metrics.items() if not isinstance(value, str)},
        "episodes": [episode["r"] for episode in model.ep_info_buffer],
    }


N_ITERATIONS = 3


def train_in_one_process(case: Case, world_size: int) -> dict[str, Any]:
    n_envs = case.of(case.n_envs, world_size)
    ranks = [rank for rank, n in enumerate(n_envs) for _ in range(n)]
    model = build(case, range(len(ranks)), ranks, InOneProcess)
    model.rank_n_envs, model.rank_batch_sizes, model.n_passes = n_envs, case.of(case.batch_sizes, world_size), 0
    return results(model.learn(N_ITERATIONS * N_STEPS * len(ranks)))


def train_on_this_rank(case: Case) -> dict[str, Any]:
    rank, world_size = launcher.rank(), launcher.world_size()
    n_envs = case.of(case.n_envs, world_size)
    first = sum(n_envs[:rank])
    model = build(case, range(first, first + n_envs[rank]), [rank] * n_envs[rank])
    model.batch_size = case.of(case.batch_sizes, world_size)[rank]
    passes = iter(range(1000))
    original, np.random.permutation = np.random.permutation, lambda size: order(rank, next(passes), size)
    try:
        return results(model.learn(N_ITERATIONS * N_STEPS * sum(n_envs)))
    finally:
        np.random.permutation = original


if __name__ == "__main__":
    th.set_num_threads(1)
    take(sys.argv[2])
    everything = {name: train_on_this_rank(case) for name, case in {**CASES, "normalized": NORMALIZED}.items()}
    th.save(everything, Path(sys.argv[1]) / f"{launcher.rank()}.pt")
