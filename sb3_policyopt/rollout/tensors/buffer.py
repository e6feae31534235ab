"""SB3's rollout buffer as tensors on the device where the policy is."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

from sb3_policyopt.graphs import Recorder, Task
from sb3_policyopt.maths.advantages import ValueTarget, gae, value_targets
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Batch, Observations
from sb3_policyopt.rollout.buffers import not_full
from sb3_policyopt.rollout.transfer import to_host

SCALARS = ("rewards", "values", "log_probs", "episode_starts", "advantages", "returns")
"""Names of the columns of shape (n_steps, n_envs)."""


class TensorRolloutBuffer(RolloutBuffer):
    """
    A rollout as tensors of shape (n_steps, n_envs, ...), under the names of SB3's buffer.

    The memory of an environment's steps lies together, so that rows come in SB3's order without a copy. It is the same
    memory in every rollout: who wants to keep numbers copies them.

    The arguments are those of ``RolloutBuffer``.
    """

    observations: Any
    actions: Any
    rewards: Any
    values: Any
    log_probs: Any
    episode_starts: Any
    advantages: Any
    returns: Any
    episodes: Any
    """Returns and lengths of the episodes under way, see :class:`sb3_policyopt.rollout.tensors.episodes.Episodes`."""
    resets: th.Tensor | None = None
    """Which rows are no transitions, as the environment only reset itself in that step: bool, shape (n_steps, n_envs)."""

    def reset(self) -> None:
        """Empty the buffer. Memory is allocated at first, and after ``device`` has changed."""
        kept: dict[str, Any] = vars(self)
        if "rewards" not in kept or kept["rewards"].device != th.empty(0, device=self.device).device:
            self._allocate()
        self.pos, self.full, self.generator_ready, self.resets = 0, False, False, None

    def _allocate(self) -> None:
        space, integers = self.observation_space, (spaces.Discrete, spaces.MultiDiscrete)
        if isinstance(space, spaces.Dict):
            shapes: dict[str, tuple[int, ...]] = self.obs_shape  # type: ignore[assignment]  # SB3 declares a tuple alone
            self.observations = {name: self._column(shape, space[name].dtype) for name, shape in shapes.items()}
        else:
            self.observations = self._column(self.obs_shape, space.dtype)
        action_type = np.int64 if isinstance(self.action_space, integers) else np.float32
        self.actions = self._column((self.action_dim,), action_type)
        for name in SCALARS:
            setattr(self, name, self._column((), np.float32))

    def final_observations(self) -> Observations[th.Tensor]:
        """
        Memory for the last observations of episodes, allocated when it is first asked for.

        :return: of the shape of ``observations``; with whatever it held before
        """
        columns: Observations[th.Tensor] = self.observations
        kept: Observations[th.Tensor] | None = vars(self).get("_final")
        if kept is None or next(iter(parts_of(kept))).device != self.rewards.device:
            if isinstance(columns, dict):
                kept = {name: th.zeros_like(column) for name, column in columns.items()}
            else:
                kept = th.zeros_like(columns)
            self._final = kept
        return kept

    def _column(self, shape: tuple[int, ...], dtype: Any) -> th.Tensor:
        """
        Memory for one quantity.

        :param shape: of one environment and step
        :param dtype: of NumPy
        :return: zeros, shape (n_steps, n_envs, ...); its transpose is contiguous
        """
        kind = th.from_numpy(np.empty(0, dtype)).dtype
        return th.zeros((self.n_envs, self.buffer_size, *shape), dtype=kind, device=self.device).transpose(0, 1)

    def add(self, obs: Any, action: Any, reward: Any, episode_start: Any, value: th.Tensor, log_prob: th.Tensor) -> None:
        """
        Store a step, as SB3's buffer does.

        :param obs: shape (n_envs, ...), or a dict of such; tensors or arrays
        :param action: shape (n_envs, ...)
        :param reward: shape (n_envs,)
        :param episode_start: shape (n_envs,)
        :param value: shape (n_envs,) or (n_envs, 1)
        :param log_prob: shape (n_envs,)
        """
        store_observations(self, self.pos, obs)
        self.actions[self.pos] = th.as_tensor(action, device=self.device).reshape(self.n_envs, self.action_dim)
        columns = {"rewards": reward, "episode_starts": episode_start, "values": value, "log_probs": log_prob}
        for name, column in columns.items():
            getattr(self, name)[self.pos] = th.as_tensor(column, device=self.device).flatten()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: Any) -> None:
        """
        S4: as SB3's buffer, on the device.

        :param last_values: V of the observations after the last step, shape (n_envs,) or (n_envs, 1)
        :param dones: whose episode ended with the last step, shape (n_envs,)
        """
        last, ended = last_values.to(self.device).flatten(), th.as_tensor(dones, device=self.device)
        self.advantages.copy_(targets_of(self, None, last, ended))
        th.add(self.advantages, self.values, out=self.returns)

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """
        SB3's samples in random order, as tensors that are copies.

        :param batch_size: of a minibatch, None for all in one
        :return: ``RolloutBufferSamples``, or ``DictRolloutBufferSamples``
        """
        assert self.full, ""
        rollout = rows_of(self)
        size = batch_size or rollout.size
        order = th.from_numpy(np.random.permutation(rollout.size)).to(self.device)
        for start in range(0, rollout.size, size):
            some = rollout.rows(order[start : start + size])
            columns = (some.actions, some.old_values, some.old_log_prob, some.advantages, some.returns)
            if isinstance(some.observations, dict):
                yield DictRolloutBufferSamples(some.observations, *columns)  # type: ignore[misc]  # as SB3's dict buffer
            else:
                yield RolloutBufferSamples(some.observations, *columns)


def parts_of(observations: Observations[th.Tensor]) -> list[th.Tensor]:
    """
    The tensors of observations.

    :param observations: one tensor, or a dict of such
    :return: one or several
    """
    return [*observations.values()] if isinstance(observations, dict) else [observations]


def store_observations(buffer: RolloutBuffer, step: int, observations: Observations[Any]) -> None:
    """
    Copy observations into a buffer of tensors.

    :param buffer: the buffer
    :param step: number of the row
    :param observations: shape (n_envs, ...), or a dict of such; tensors or arrays
    """
    columns: Observations[th.Tensor] = buffer.observations  # type: ignore[assignment]  # SB3 declares arrays
    if isinstance(columns, dict):
        assert isinstance(observations, dict)
        for name, column in columns.items():
            column[step] = th.as_tensor(observations[name], device=column.device).reshape(column.shape[1:])
    else:
        assert not isinstance(observations, dict)
        columns[step] = th.as_tensor(observations, device=columns.device).reshape(columns.shape[1:])


def observations_at(buffer: RolloutBuffer, step: int) -> Observations[th.Tensor]:
    """
    Observations in a buffer of tensors.

    :param buffer: the buffer
    :param step: number of the row
    :return: shape (n_envs, ...), or a dict of such; the buffer's own memory
    """
    columns: Observations[th.Tensor] = buffer.observations  # type: ignore[assignment]  # SB3 declares arrays
    return {name: column[step] for name, column in columns.items()} if isinstance(columns, dict) else columns[step]


def targets_of(
    buffer: TensorRolloutBuffer,
    kind: ValueTarget | None,
    last_values: th.Tensor,
    dones: th.Tensor,
    recorder: Recorder | None = None,
) -> th.Tensor:
    """
    S4, T10: advantages or value targets of a full buffer, with its own γ and λ.

    :param buffer: whose numbers are read
    :param kind: of the value targets; None for the advantages
    :param last_values: V of the observations after the last step, shape (n_envs,)
    :param dones: whose episode ended with the last step, shape (n_envs,)
    :param recorder: computes them by a graph, and its next call may overwrite them; None for no graph
    :return: shape (n_steps, n_envs)
    """
    gamma, gae_lambda = buffer.gamma, buffer.gae_lambda

    def compute(
        rewards: th.Tensor, values: th.Tensor, starts: th.Tensor, last_values: th.Tensor, dones: th.Tensor
    ) -> tuple[th.Tensor, ...]:
        ended = th.cat((starts[1:], dones.to(starts.dtype)[None]))
        rollout = (rewards, values, last_values, ended, gamma)
        return (gae(*rollout, gae_lambda) if kind is None else value_targets(kind, *rollout, gae_lambda),)

    inputs = [buffer.rewards, buffer.values, buffer.episode_starts, last_values, dones]
    if recorder is None:
        return compute(*inputs)[0]
    name = "advantages" if kind is None else "value targets"
    return recorder.call(Task(name, (gamma, gae_lambda, kind), compute, inputs, fixed=range(3)))[0]


def transitions(buffer: TensorRolloutBuffer) -> th.Tensor | None:
    """
    Which rows of a full buffer are transitions, of the order env · n_steps + t.

    :param buffer: the buffer
    :return: their numbers; None if all are
    :raises ValueError: if none is
    """
    if buffer.resets is None:
        return None
    rows = (~buffer.resets).T.flatten().nonzero().flatten()
    if not len(rows):
        raise ValueError("n_steps: the environments did nothing but reset themselves in this rollout; make it longer")
    return rows


def values_and_returns(buffer: RolloutBuffer) -> tuple[NumpyArray, NumpyArray]:
    """
    V and the value targets of a rollout, as arrays.

    :param buffer: of tensors or of arrays, full
    :return: shape (n,) each, without the rows that are no transitions
    """
    if not isinstance(buffer, TensorRolloutBuffer):
        return buffer.values.flatten(), buffer.returns.flatten()
    rows = slice(None) if buffer.resets is None else ~buffer.resets
    values, returns = to_host(buffer.values[rows].flatten(), buffer.returns[rows].flatten())
    return values, returns


def rows_of(buffer: TensorRolloutBuffer) -> Batch[th.Tensor]:
    """
    All transitions of a buffer of tensors, environment by environment.

    :param buffer: the buffer
    :return: its own memory, row env · n_steps + t; copies without the rows that are no transitions, if there are such
    :raises ValueError: if the buffer is not full
    """
    if not buffer.full:
        raise not_full(buffer)
    columns: Any = buffer

    def rows(column: th.Tensor) -> th.Tensor:
        return column.transpose(0, 1).flatten(0, 1)

    observations: Observations[th.Tensor] = columns.observations
    everything = Batch(
        {name: rows(column) for name, column in observations.items()}
        if isinstance(observations, dict)
        else rows(observations),
        rows(columns.actions),
        rows(columns.values),
        rows(columns.log_probs),
        rows(columns.advantages),
        rows(columns.returns),
    )
    kept = transitions(buffer)
    return everything if kept is None else everything.rows(kept)
