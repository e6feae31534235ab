"""What puts a step into the rollout buffer."""

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import TypeAlias, cast

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Observations, one_array
from sb3_policyopt.rollout.buffers import RESIZE, STATES
from sb3_policyopt.rollout.context import NO_CONTEXT, Context
from sb3_policyopt.rollout.finiteness import RolloutGuard
from sb3_policyopt.rollout.transfer import to_host

Store: TypeAlias = Callable[
    [Observations[NumpyArray], NumpyArray, NumpyArray, NumpyArray, NumpyArray, NumpyArray, Context], None
]
"""(obs, action, reward, episode_start, value, log_prob, context) ↦ stored; arrays with first axis n_envs."""


def storing_function(buffer: RolloutBuffer, guard: RolloutGuard) -> Store:
    """
    What puts one step into the buffer.

    :param buffer: the rollout buffer
    :param guard: of the rollout
    :return: ``buffer.add`` of a buffer with its own; for SB3's, a function that writes each array in place
    :raises ValueError: if SB3's has no room for the rollout
    """
    if not guard.in_rows:
        return partial(add, buffer, guard)
    if guard.n_steps > buffer.buffer_size:
        raise ValueError(
            f"rollout_buffer has room for {buffer.buffer_size} steps, and {guard.n_steps} are to be collected. {RESIZE}"
        )
    n_envs, action_dim, replaced = buffer.n_envs, buffer.action_dim, vars(buffer)
    shape = None if isinstance(buffer.observations, dict) else buffer.observations.shape[1:]

    def store(
        obs: Observations[NumpyArray],
        action: NumpyArray,
        reward: NumpyArray,
        episode_start: NumpyArray,
        value: NumpyArray,
        log_prob: NumpyArray,
        context: Context,
    ) -> None:
        if "add" in replaced:  # by a callback, during this rollout
            return add(buffer, guard, obs, action, reward, episode_start, value, log_prob, context)
        row = buffer.pos
        observations: Observations[NumpyArray] = buffer.observations
        if isinstance(observations, dict):
            for key, array in observations.items():
                array[row] = cast(dict[str, NumpyArray], obs)[key].reshape(array.shape[1:])
        else:
            flat = one_array(obs)
            observations[row] = flat if flat.shape == shape else flat.reshape(shape)
        buffer.actions[row] = action.reshape(n_envs, action_dim)
        buffer.rewards[row] = reward
        buffer.episode_starts[row] = episode_start
        buffer.values[row] = value
        buffer.log_probs[row] = log_prob
        if context is not NO_CONTEXT:
            _store_context(buffer, row, context)
        buffer.pos = row + 1
        buffer.full = buffer.pos == buffer.buffer_size
        return None

    return store


def _store_context(buffer: RolloutBuffer, row: int, context: Context) -> None:
    """
    Write masks and states of one step.

    :param buffer: one of sb3-contrib's
    :param row: number of the step
    :param context: of the step
    """
    arrays = vars(buffer)
    if context.action_masks is not None:
        arrays["action_masks"][row] = context.action_masks
    if context.memory is not None:
        for name, state in zip(STATES, chain.from_iterable(context.memory), strict=True):
            arrays[name][row] = state if isinstance(state, np.ndarray) else to_host(state)[0]


def add(
    buffer: RolloutBuffer,
    guard: RolloutGuard,
    obs: Observations[NumpyArray],
    action: NumpyArray,
    reward: NumpyArray,
    episode_start: NumpyArray,
    value: NumpyArray,
    log_prob: NumpyArray,
    context: Context,
) -> None:
    """
    Hand a step to a buffer with its own way of storing it, which the guard cannot look into.

    :param buffer: the rollout buffer
    :param guard: of the rollout
    :param obs: observations, first axis n_envs
    :param action: actions, first axis n_envs
    :param reward: shape (n_envs,)
    :param episode_start: shape (n_envs,)
    :param value: shape (n_envs,)
    :param log_prob: shape (n_envs,)
    :param context: masks and states, for a policy that takes them
    :raises NonFiniteError: if one of them is not finite
    """
    guard.check(observation=obs, value=value, action=action, log_prob=log_prob, reward=reward)
    of_kind = {"action_masks": context.action_masks, "lstm_states": context.memory}  # under sb3-contrib's names
    further = {name: part for name, part in of_kind.items() if part is not None}
    tensors = th.from_numpy(value[:, None]), th.from_numpy(log_prob)
    buffer.add(cast(NumpyArray, obs), action, reward, episode_start, *tensors, **further)  # type: ignore[arg-type]
