"""Models of sb3-contrib and ours with the same parameters, environments with masks, and comparisons of the two."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from toy_environments import ACTION_SPACES, VECTOR, collect, copy_rollout, start

from benchmarks.environments import ToyEnv
from sb3_policyopt.distributions.masking import choices
from sb3_policyopt.rollout.buffers import STATES

MASKABLE = {name: ACTION_SPACES[name] for name in ("discrete", "multi_discrete", "multi_binary")}


class MaskedToy(ToyEnv):
    """Forbids each action with probability 1/2, but one of each choice is always allowed."""

    def __init__(
        self, observation_space: spaces.Space[Any] = VECTOR, action_space: spaces.Space[Any] = MASKABLE["discrete"]
    ) -> None:
        super().__init__(observation_space, action_space)
        self.taken: list[Any] = []

    def _forbid(self) -> np.ndarray:
        parts = []
        for size in choices(self.action_space):
            part = self.np_random.random(size) < 0.5
            part[self.np_random.integers(size)] = True
            parts.append(part)
        return np.concatenate(parts)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**options)
        self.mask = self._forbid()
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken.append((np.copy(action), self.mask))
        result = super().step(action)
        self.mask = self._forbid()
        return result

    def action_masks(self) -> np.ndarray:
        return self.mask


def is_allowed(space: spaces.Space[Any], action: Any, mask: np.ndarray) -> bool:
    """Whether a mask allows every choice of an action."""
    chosen, start = np.atleast_1d(action).astype(int), 0
    for choice, size in zip(chosen, choices(space), strict=True):
        if not mask[start + choice]:
            return False
        start += size
    return True


def masked_toy(
    observation: spaces.Space[Any] = VECTOR, action: spaces.Space[Any] = MASKABLE["discrete"], n_envs: int = 4
) -> VecEnv:
    return make_vec_env(lambda: MaskedToy(observation, action), n_envs, seed=0)


class Twins(NamedTuple):
    """The same model of sb3-contrib and of ours."""

    stock: Any
    ours: Any

    @property
    def distance(self) -> float:
        """Largest difference of any parameter."""
        ours = self.ours.policy.state_dict()
        return max(float((value - ours[name]).abs().max()) for name, value in self.stock.policy.state_dict().items())


def twins(
    stock: type, ours: type, policy: str, make_env: Callable[[], VecEnv], arguments: dict[str, Any], **options: Any
) -> Twins:
    """
    Build both.

    :param stock: sb3-contrib's class
    :param ours: its counterpart
    :param policy: the name of the policy
    :param make_env: () ↦ the environments
    :param arguments: of both
    :param options: of ours
    """
    arguments = {"n_steps": 32, "batch_size": 32, "n_epochs": 3, "seed": 0, "device": "cpu", **arguments}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
        model = stock(policy, make_env(), **copy.deepcopy(arguments))
        pair = Twins(model, ours(policy, make_env(), **copy.deepcopy(arguments), **options))
    assert not hasattr(pair.stock, "engine_in_use")
    pair.ours.policy.load_state_dict(pair.stock.policy.state_dict())
    return pair


def copy_context(source: Any, target: Any) -> None:
    """Copy masks and states from a buffer of sb3-contrib's to one of ours."""
    for name in ("action_masks", *STATES):
        if name in vars(source):
            getattr(target, name)[...] = getattr(source, name)


def update_both(pair: Twins, seed: int) -> None:
    """One rollout by sb3-contrib's model, one update of both models from it."""
    if pair.ours._last_obs is None:
        start(pair.ours)
    collect(pair.stock)
    copy_rollout(pair.stock.rollout_buffer, pair.ours.rollout_buffer)
    copy_context(pair.stock.rollout_buffer, pair.ours.rollout_buffer)
    for model in pair:
        np.random.seed(seed)
        th.manual_seed(seed)
        model.train()


def assert_equal_updates(pair: Twins, tolerance: float) -> None:
    """Two updates, the second from the optimizer state of the first, bring both to the same parameters and numbers."""
    before = copy.deepcopy(pair.stock.policy.state_dict())
    for seed in range(2):
        update_both(pair, seed)
        assert pair.ours._n_updates == pair.stock._n_updates
    moved = max(float((value - before[name]).abs().max()) for name, value in pair.stock.policy.state_dict().items())
    assert moved > 100 * tolerance, "nothing to compare: sb3-contrib's parameters hardly moved"
    assert pair.distance <= tolerance
    theirs, mine = pair.stock.logger.name_to_value, pair.ours.logger.name_to_value
    for name in theirs.keys() - {"train/loss", "train/approx_kl"}:  # theirs are of the last minibatch and of the last epoch
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-3, atol=1e-5, err_msg=name)
