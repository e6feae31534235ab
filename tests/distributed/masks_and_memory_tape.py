"""
As tape.py, for policies with masks and memory: masks and actions are on the tape, so that one process with all environments
sees what several ranks see together.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tape
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.vec_env import DummyVecEnv
from tape import N_STEPS, TAPE, MixedIn

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.identity.kinds import kind_of
from sb3_policyopt.models.model import Decision
from sb3_policyopt.parallel import launcher
from sb3_policyopt.rollout.context import Memory

N_ITERATIONS, N_CHOICES = 3, 3


class MaskedTape(tape.Tape):
    """Half of all actions are forbidden; which ones is on the tape, and so is an allowed action for each position."""

    def __init__(self, number: int, actions: str) -> None:
        super().__init__(number, actions, False)
        random = np.random.default_rng(20_000 + number)
        self.masks = random.random((TAPE, N_CHOICES)) < 0.5
        self.masks[np.arange(TAPE), random.integers(N_CHOICES, size=TAPE)] = True
        self.actions = np.array([random.choice(np.flatnonzero(mask)) for mask in self.masks])
        if isinstance(self.action_space, spaces.Box):
            self.actions = random.normal(size=(TAPE, 2)).astype(np.float32)

    def action_masks(self) -> np.ndarray:
        return self.masks[self.position]


@dataclass(frozen=True)
class Case:
    """One training; ``n_envs`` and ``batch_sizes`` of each rank."""

    algorithm: type
    policy: str
    engine: str
    actions: str = "discrete"
    n_envs: tuple[int, int] = (2, 2)
    batch_sizes: tuple[int, int] = (8, 8)
    network: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)


PPO_ARGUMENTS = {"n_epochs": 2, "learning_rate": 1e-3, "ent_coef": 0.01}
TRPO_ARGUMENTS = {"n_critic_updates": 2, "target_kl": 0.02}
KINDS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("masks", {"policy": "MaskableMlpPolicy", "batch_sizes": (8, 10)}, {}),
    ("masks, empty minibatches", {"policy": "MaskableMlpPolicy", "n_envs": (3, 1), "batch_sizes": (5, 10)}, {}),
    ("memory", {"policy": "MlpLstmPolicy", "actions": "box"}, {}),
    ("memory, empty minibatches", {"policy": "MlpLstmPolicy", "n_envs": (3, 1), "batch_sizes": (5, 10)}, {}),
    (
        "gru, shared",
        {"policy": "MlpLstmPolicy", "network": {"rnn": "gru", "shared_lstm": True, "enable_critic_lstm": False}},
        {},
    ),
    ("both", {"policy": "MaskableMlpLstmPolicy", "n_envs": (1, 3), "batch_sizes": (8, 5)}, {}),
]
CASES = {
    f"{name}-{algorithm.__name__}-{engine}": Case(algorithm, engine=engine, arguments={**arguments, **more}, **given)
    for algorithm, arguments in ((PPO, PPO_ARGUMENTS), (TRPO, TRPO_ARGUMENTS))
    for engine in ("auto", "autograd")
    for name, given, more in KINDS
}


def rotation(rank: int, number: int, size: int) -> int:
    """The row at which a rank begins its n-th pass through sequences."""
    return int(np.random.RandomState(1000 * rank + number).randint(size))


class OnTape(MixedIn):
    """Mixed into an algorithm: acts as the tape says."""

    def prepare_engine(self) -> Any:
        engine = super().prepare_engine()
        engine.act = self.act_by_tape
        return engine

    def act_by_tape(self, observations: Any, context: Any) -> Decision:
        positions, actions = self.env.get_attr("position"), self.env.get_attr("actions")
        taken = np.stack([tape[position] for tape, position in zip(actions, positions, strict=True)])
        masks = {} if context.action_masks is None else {"action_masks": context.action_masks}
        rows, memory = th.as_tensor(observations), None
        with th.no_grad():
            if context.memory is None:
                values, log_prob, _ = self.policy.evaluate_actions(rows, th.as_tensor(taken), **masks)
            else:
                starts = th.as_tensor(np.asarray(context.episode_starts, np.float32))
                states = RNNStates(*context.memory)
                values, log_prob, _ = self.policy.evaluate_actions(rows, th.as_tensor(taken), states, starts, **masks)
                after = self.policy(rows, states, starts, **masks)[3]
                memory = Memory(after.pi, after.vf)
        return Decision(taken, values.flatten().numpy(), log_prob.flatten().numpy(), memory)

    def train(self) -> None:
        super().train()
        self.last_metrics = dict(self.logger.name_to_value)


class InOneProcess(MixedIn):
    """Mixed into an algorithm: takes in one minibatch what the ranks take at a time."""

    def passes(self, data: Any, n_passes: int, normalized: bool = False) -> Iterator[Iterator[Any]]:
        return (self.one_pass(data, normalized and self.normalize_advantage) for _ in range(n_passes))

    def one_pass(self, data: Any, normalized: bool) -> Iterator[Any]:
        memory = kind_of(self.policy).memory
        (whole,) = data.whole()
        parts, first = [], 0
        for rank, (n_envs, size) in enumerate(zip(self.case.n_envs, self.case.batch_sizes, strict=True)):
            n = n_envs * N_STEPS
            if memory:
                rows = first + np.roll(np.arange(n), -rotation(rank, self.n_passes, n))
            else:
                rows = first + tape.order(rank, self.n_passes, n)
            parts.append([rows[start : start + size] for start in range(0, n, size)])
            first += n
        self.n_passes += 1
        for k in range(max(map(len, parts))):
            pieces = [part[k] for part in parts if k < len(part)]
            rows = np.concatenate(pieces)
            if memory:
                cuts = data.cuts[rows]
                cuts[np.cumsum([0, *map(len, pieces)])[:-1]] = True  # each rank's minibatch begins a sequence
                batch = data.batch_of(rows, cuts)
            else:
                batch = whole.rows(rows)
            yield batch.normalized() if normalized else batch


def build(case: Case, numbers: range, batch_size: int, *mixins: type) -> Any:
    algorithm = type(f"{case.algorithm.__name__}OnTape", (*mixins, OnTape, case.algorithm), {})
    network = {"net_arch": [8], **({"lstm_hidden_size": 5} if "Lstm" in case.policy else {}), **case.network}
    envs = DummyVecEnv([partial(MaskedTape, number, case.actions) for number in numbers])
    options = {"n_steps": N_STEPS, "batch_size": batch_size, "engine": case.engine, "seed": 3, "device": "cpu"}
    model = algorithm(case.policy, envs, policy_kwargs=network, **options, **case.arguments)
    model.case, model.n_passes = case, 0
    return model


def results(model: Any) -> dict[str, Any]:
    optimizer = model.policy.optimizer.state_dict()["state"]
    return {
        "parameters": np.concatenate([p.detach().numpy().ravel() for p in model.policy.parameters()]),
        "moments": np.concatenate([state["exp_avg_sq"].numpy().ravel() for _, state in sorted(optimizer.items())]),
        "num_timesteps": model.num_timesteps,
        "engine": model.engine_in_use.name,
        "metrics": {key: value for key, value in model.last_metrics.items() if not isinstance(value, str)},
    }


def train_in_one_process(case: Case) -> dict[str, Any]:
    n_envs = sum(case.n_envs)
    model = build(case, range(n_envs), case.batch_sizes[0], InOneProcess)
    return results(model.learn(N_ITERATIONS * N_STEPS * n_envs))


def train_on_this_rank(case: Case) -> dict[str, Any]:
    rank = launcher.rank()
    first = sum(case.n_envs[:rank])
    model = build(case, range(first, first + case.n_envs[rank]), case.batch_sizes[rank])
    passes = iter(range(1000))
    random: Any = np.random
    originals = random.permutation, random.randint
    random.permutation = lambda size: tape.order(rank, next(passes), size)
    random.randint = lambda size: rotation(rank, next(passes), size)
    try:
        return results(model.learn(N_ITERATIONS * N_STEPS * sum(case.n_envs)))
    finally:
        random.permutation, random.randint = originals


if __name__ == "__main__":
    th.set_num_threads(1)
    everything = {name: train_on_this_rank(case) for name, case in CASES.items()}
    th.save(everything, Path(sys.argv[1]) / f"{launcher.rank()}.pt")
