"""S3, S4, T10: what becomes of the rewards: bootstrapped at time limits, advantages, value targets."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel

from sb3_policyopt.identity.originals import is_original
from sb3_policyopt.maths.advantages import ValueTarget, gae, value_targets
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Observations
from sb3_policyopt.rollout.buffers import is_stock
from sb3_policyopt.rollout.context import NO_CONTEXT, Context, Memory
from sb3_policyopt.rollout.finiteness import RolloutGuard, is_finite, not_finite
from sb3_policyopt.rollout.info import Info


def time_limits(infos: list[Info], dones: NumpyArray) -> list[int]:
    """
    The environments whose episode a time limit cut off.

    :param infos: of all environments
    :param dones: whose episode ended, shape (n_envs,)
    :return: their numbers; those that give no final observation are left out
    """
    return [
        i
        for i in np.flatnonzero(dones).tolist()
        if infos[i].get("TimeLimit.truncated", False) and infos[i].get("terminal_observation") is not None
    ]


def bootstrapped(
    values_of: Callable[[Observations[NumpyArray], Context], NumpyArray],
    gamma: float,
    guard: RolloutGuard,
    rewards: NumpyArray,
    finals_of: Callable[[list[Observations[NumpyArray]]], Observations[NumpyArray]],
    infos: list[Info],
    cut_off: list[int],
    of_step: dict[str, Observations[NumpyArray]],
    memory: Memory | None = None,
) -> NumpyArray:
    """
    S3: r + γ V(final observation) in the environments that a time limit cut off, whose values come from one batch.

    :param values_of: (observations, context) ↦ V
    :param gamma: γ
    :param guard: of the rollout
    :param rewards: float32, shape (n_envs,)
    :param finals_of: final observations ↦ a batch of them, see :func:`stacking`
    :param infos: of all environments
    :param cut_off: of :func:`time_limits`
    :param of_step: what else this step consists of, by the names that the guard knows
    :param memory: the states before the final observations; None for a policy without memory
    :return: float32, shape (n_envs,)
    :raises NonFiniteError: if a final observation or its value is not finite, or something before it
    """
    observations = finals_of([infos[i]["terminal_observation"] for i in cut_off])
    context = NO_CONTEXT
    if memory is not None:
        context = Context(memory=memory.of_environments(cut_off), episode_starts=np.zeros(len(cut_off), bool))
    values = values_of(observations, context)
    sums = rewards.copy()  # as they are the environment's own
    sums[cut_off] += gamma * values
    if not is_finite(sums) or (guard.check_observations and not_finite(observations)):
        guard.check(None, **of_step, reward=rewards)
        guard.check(cut_off, final_observation=observations, final_value=values, bootstrapped_reward=sums[cut_off])
    return sums


def stacking(policy: ActorCriticPolicy) -> Callable[[list[Observations[NumpyArray]]], Observations[NumpyArray]]:
    """
    What makes a batch of final observations. SB3 gives them, and no others, to the policy's ``obs_to_tensor``, which does
    nothing to what a VecEnv returns unless it is overridden.

    :param policy: of the model
    :return: a function of the observations, one of each environment
    """
    if is_original(policy, BaseModel, "obs_to_tensor"):
        return stacked
    return lambda finals: stacked([_first(policy.obs_to_tensor(final)[0]) for final in finals])


def stacked(observations: list[Observations[NumpyArray]]) -> Observations[NumpyArray]:
    """
    A batch of observations.

    :param observations: arrays, or dicts of arrays
    :return: with a first axis for them
    """
    first = observations[0]
    if isinstance(first, dict):
        return {key: np.stack([cast(Any, one)[key] for one in observations]) for key in first}
    return np.stack(cast("list[NumpyArray]", observations))


def _first(tensors: th.Tensor | dict[str, th.Tensor]) -> Observations[NumpyArray]:
    """The observation of a batch of one."""
    if isinstance(tensors, dict):
        return {key: tensor[0].cpu().numpy() for key, tensor in tensors.items()}
    array: NumpyArray = tensors[0].cpu().numpy()
    return array


def finish(buffer: RolloutBuffer, value_target: ValueTarget, last_values: NumpyArray, dones: NumpyArray) -> None:
    """
    S4, T10: advantages and value targets of a full buffer, with its own γ and λ, as SB3's buffer computes them.

    :param buffer: full; its ``advantages`` and ``returns`` are written
    :param value_target: what the critic is fitted to
    :param last_values: V of the observations after the last step, shape (n_envs,)
    :param dones: whose episode ended with the last step, shape (n_envs,)
    """
    own = not is_stock(buffer, "compute_returns_and_advantage")
    if own:
        buffer.compute_returns_and_advantage(last_values=th.from_numpy(last_values), dones=dones)
        if value_target == "td_lambda":
            return
    ended = np.concatenate((buffer.episode_starts[1:], dones[None].astype(np.float32)))
    rollout = (buffer.rewards, buffer.values, last_values, ended, buffer.gamma)
    if not own:
        buffer.advantages[:] = gae(*rollout, buffer.gae_lambda)
    if value_target == "td_lambda":
        buffer.returns = buffer.advantages + buffer.values
    else:
        buffer.returns = value_targets(value_target, *rollout, buffer.gae_lambda)
