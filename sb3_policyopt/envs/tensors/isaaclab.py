"""Isaac Lab's environments."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_policyopt.envs.tensors.adapter import Adapter, Groups, bounded
from sb3_policyopt.envs.tensors.vec_env import Bootstrap, TensorStep
from sb3_policyopt.rollout.batch import Observations


def from_isaaclab(env: Any, group: str | Sequence[str] | None = None, clip_actions: float = 100.0) -> "IsaacLabAdapter":
    """
    A tensor environment from Isaac Lab's ``ManagerBasedRLEnv`` or ``DirectRLEnv``, with or without Gymnasium's wrappers.

    Set ``cfg.compute_final_obs = True`` where this version of Isaac Lab has it: then the value of an episode that the time
    limit cuts off is that of its last observation. Without it, it is that of the observation before, and a warning says so.
    Where ``cfg.is_finite_horizon`` is set, the time limit is an end like every other, and no value is needed.

    :param env: from ``gymnasium.make("Isaac-…", cfg=…)``
    :param group: of observations that the policy sees, "policy" by default; several names give dicts
    :param clip_actions: bound of actions that have none, 100 by default, as in Isaac Lab's own wrapper for SB3
    :return: the tensor environment, with ``env`` as its attribute ``simulator``
    :raises ValueError: if something of Isaac Lab's environments is missing, or there is no such group
    """
    inner = getattr(env, "unwrapped", env)
    names = ("num_envs", "device", "single_observation_space", "single_action_space", "cfg")
    lacking = [name for name in names if not hasattr(inner, name)]
    if lacking:
        raise ValueError(f"env must be one of Isaac Lab's, but {type(inner).__name__} has no {' and no '.join(lacking)}")
    return IsaacLabAdapter(env, inner, group, clip_actions)


class IsaacLabAdapter(Adapter):
    """
    See :func:`from_isaaclab`.

    :param env: perhaps with wrappers
    :param inner: without them
    :param group: of observations
    :param clip_actions: bound of actions that have none
    """

    def __init__(self, env: Any, inner: Any, group: str | Sequence[str] | None, clip_actions: float) -> None:
        self._groups = Groups(group, list(inner.single_observation_space.spaces))
        self._finite_horizon = bool(getattr(inner.cfg, "is_finite_horizon", False))
        gives_final = bool(getattr(inner.cfg, "compute_final_obs", False))
        if not gives_final and not self._finite_horizon:
            warnings.warn(
                "This Isaac Lab environment gives no last observations: where the time limit cuts an episode off, the value "
                "of the observation before stands for it. Set cfg.compute_final_obs = True if your version has it."
            )
        space = self._groups.space(inner.single_observation_space.spaces)
        actions = bounded(inner.single_action_space, clip_actions)
        bootstrap: Bootstrap = "final" if gives_final else "none" if self._finite_horizon else "previous"
        super().__init__(env, inner.num_envs, space, actions, inner.device, bootstrap)

    def reset_tensors(self, seed: int | None = None) -> Observations[th.Tensor]:
        """
        Begin a new episode in all environments.

        :param seed: of the simulator
        :return: shape (n_envs, ...), or a dict of such
        """
        observations, _ = self.simulator.reset(seed=seed)
        return self._groups.of(observations)

    def step_tensors(self, actions: th.Tensor) -> TensorStep:
        """
        Do a step in all environments.

        :param actions: shape (n_envs, ...)
        :return: with a copy of Isaac Lab's dict as extras
        """
        observations, rewards, terminated, truncated, found = self.simulator.step(actions.clone())
        extras = {name: value for name, value in found.items() if name != "final_obs"}
        if self.bootstrap == "final" and "final_obs" in found:
            extras["final_obs"] = self._groups.of(found["final_obs"])
        if self._finite_horizon:
            terminated, truncated = terminated | truncated, th.zeros_like(truncated)
        return TensorStep(self._groups.of(observations), rewards.float(), terminated.bool(), truncated.bool(), extras)
