"""Environments with the methods of rsl_rl's ``VecEnv``: those of Genesis, MuJoCo Playground's wrapper, legged_gym."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_policyopt.envs.tensors.adapter import Adapter, Groups
from sb3_policyopt.envs.tensors.vec_env import TensorStep
from sb3_policyopt.rollout.batch import Observations


def from_rsl_rl(
    env: Any, group: str | Sequence[str] | None = None, clip_actions: float = 100.0, device: th.device | str | None = None
) -> "RslRlAdapter":
    """
    A tensor environment from one that is made for rsl_rl.

    These environments do not give last observations, nor do they tell a time limit from an end of the same step: as in
    rsl_rl, the value of an episode that is cut off is that of the observation before its last step. A warning says so.

    :param env: with ``num_envs``, ``num_actions``, ``get_observations()`` and ``step(actions)``
    :param group: of observations that the policy sees; by default "policy", or the only one. Several names give dicts
    :param clip_actions: actions are between −clip_actions and clip_actions
    :param device: of its tensors; by default ``env.device``, or that of its observations
    :return: the tensor environment, with ``env`` as its attribute ``simulator``
    :raises ValueError: if something of rsl_rl's environments is missing, or there is no such group
    """
    names = ("num_envs", "num_actions", "get_observations", "step")
    lacking = [name for name in names if not hasattr(env, name)]
    if lacking:
        raise ValueError(f"env must be one for rsl_rl, but {type(env).__name__} has no {' and no '.join(lacking)}")
    if not (np.isfinite(clip_actions) and clip_actions > 0):
        raise ValueError(f"clip_actions must be positive and finite, got {clip_actions}")
    return RslRlAdapter(env, group, clip_actions, device)


class RslRlAdapter(Adapter):
    """
    See :func:`from_rsl_rl`.

    :param env: with rsl_rl's methods
    :param group: of observations
    :param clip_actions: bound of the actions
    :param device: of its tensors
    """

    def __init__(
        self, env: Any, group: str | Sequence[str] | None, clip_actions: float, device: th.device | str | None
    ) -> None:
        warnings.warn(
            "Environments for rsl_rl give no last observations: where a time limit cuts an episode off, the value of the "
            "observation before stands for it, as in rsl_rl."
        )
        found = _without_extras(env.get_observations())
        self._groups = None if isinstance(found, th.Tensor) else Groups(group, list(found.keys()))
        if self._groups is None and group not in (None, "policy"):
            raise ValueError(f"group: the simulator has no observations {group!r}; it gives one tensor")
        observations = self._chosen(found)
        space: spaces.Space[Any]
        if isinstance(observations, dict):
            space = spaces.Dict({name: _unbounded(tensor) for name, tensor in observations.items()})
            first = next(iter(observations.values()))
        else:
            space, first = _unbounded(observations), observations
        actions = spaces.Box(-clip_actions, clip_actions, (env.num_actions,), np.float32)
        place: th.device | str = device or getattr(env, "device", None) or first.device
        super().__init__(env, env.num_envs, space, actions, place, "previous")
        self._warned_of_seed = False

    def _chosen(self, found: Any) -> Observations[th.Tensor]:
        found = _without_extras(found)
        return found if self._groups is None else self._groups.of(found)

    def reset_tensors(self, seed: int | None = None) -> Observations[th.Tensor]:
        """
        Begin a new episode in all environments, if the simulator has ``reset``; else the episodes go on.

        :param seed: for the simulator's method ``seed``; without one, a warning says that it is not used
        :return: shape (n_envs, ...), or a dict of such
        """
        if seed is not None:
            if callable(getattr(self.simulator, "seed", None)):
                self.simulator.seed(seed)
            elif not self._warned_of_seed:
                warnings.warn(f"{type(self.simulator).__name__} has no method seed: its random numbers do not follow the seed")
                self._warned_of_seed = True
        found = _without_extras(self.simulator.reset()) if hasattr(self.simulator, "reset") else None
        return self._chosen(self.simulator.get_observations() if found is None else found)

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        """
        Do a step in all environments.

        :param actions: shape (n_envs, num_actions)
        :return: with a copy of the simulator's dict as extras
        """
        observations, *_, rewards, dones, extras = self.simulator.step(actions.clone())  # legged_gym has another tensor
        done = dones.bool()
        truncated = done & extras["time_outs"].bool() if "time_outs" in extras else th.zeros_like(done)
        return TensorStep(self._chosen(observations), rewards.float(), done & ~truncated, truncated, dict(extras))


def _without_extras(found: Any) -> Any:
    """
    Observations as rsl_rl 3 gives them.

    :param found: a tensor, tensors by name, or, in older versions, a tuple of observations and extras
    :return: without extras
    """
    return found[0] if isinstance(found, tuple) else found


def _unbounded(tensor: th.Tensor) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, tuple(tensor.shape[1:]), np.float32)
