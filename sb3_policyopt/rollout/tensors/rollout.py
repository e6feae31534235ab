"""One rollout of environments that give and take tensors: its memory, its time limits, its episodes."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_policyopt.graphs import Recorder
from sb3_policyopt.maths.advantages import ValueTarget, next_values
from sb3_policyopt.maths.arrays import Array, NumpyArray
from sb3_policyopt.rollout.batch import Observations
from sb3_policyopt.rollout.buffers import is_stock
from sb3_policyopt.rollout.finiteness import check_rows, explain
from sb3_policyopt.rollout.info import Info
from sb3_policyopt.rollout.tensors.buffer import TensorRolloutBuffer, observations_at, parts_of, store_observations, targets_of
from sb3_policyopt.rollout.tensors.env import StepOfTensors, TensorEnv, resets_of
from sb3_policyopt.rollout.tensors.episodes import Episodes
from sb3_policyopt.rollout.tensors.shapes import Shapes
from sb3_policyopt.rollout.transfer import observations_to_host, to_host

ValuesOf = Callable[[Observations[th.Tensor]], th.Tensor]


class TensorRollout:
    """
    What the loop stores, and what becomes of it. Only :meth:`finish` waits for the device, twice.

    :param buffer: empty
    :param env: the environments
    :param observations: the last ones, tensors or arrays
    :param episode_starts: whose episode starts with them, shape (n_envs,)
    :raises ValueError: if the observations have another shape than the observation space
    """

    def __init__(
        self,
        buffer: TensorRolloutBuffer,
        env: TensorEnv,
        observations: Observations[NumpyArray] | Observations[th.Tensor],
        episode_starts: Array,
    ) -> None:
        self.buffer, self.env = buffer, env
        self.device = buffer.rewards.device
        self.starts = th.as_tensor(episode_starts, device=self.device).to(th.bool)
        self.cut_off = th.zeros(buffer.rewards.shape, dtype=th.bool, device=self.device)
        self.resets: th.Tensor | None = None
        self.final: Observations[th.Tensor] | None = None
        self.episodes = Episodes.of(buffer, self.starts)
        self.last: Observations[th.Tensor] = {}
        self.shapes = Shapes(env, buffer.n_envs, buffer.observation_space)
        self.shapes.check_observations(observations, method="reset_tensors")
        store_observations(buffer, 0, observations)

    def observations(self, step: int) -> Observations[th.Tensor]:
        """
        What the policy sees.

        :param step: number of the step
        :return: shape (n_envs, ...), or a dict of such
        """
        return observations_at(self.buffer, step)

    def following(self, n_steps: int) -> Observations[th.Tensor]:
        """
        What the policy will see next.

        :param n_steps: steps that were stored
        :return: shape (n_envs, ...), or a dict of such
        """
        return self.last if n_steps == self.buffer.buffer_size else self.observations(n_steps)

    def store_decision(self, step: int, actions: th.Tensor, values: th.Tensor, log_probs: th.Tensor) -> None:
        """
        Store what the policy decided.

        :param step: number of the step
        :param actions: shape (n_envs, ...)
        :param values: shape (n_envs,)
        :param log_probs: shape (n_envs,)
        """
        buffer = self.buffer
        buffer.actions[step] = actions.reshape(buffer.n_envs, -1)
        buffer.values[step] = values
        buffer.log_probs[step] = log_probs
        buffer.episode_starts[step] = self.starts

    def store_step(self, step: int, given: StepOfTensors) -> None:
        """
        Copy what the environments gave, which their next step may overwrite.

        :param step: number of the step
        :param given: by the environments
        :raises ValueError: if something has another shape than it must have
        """
        self.shapes.check_step(given)
        observations, rewards, terminated, truncated, extras = given
        self.buffer.rewards[step] = rewards
        ended = th.logical_or(terminated, truncated).to(self.device)
        resets = self._store_resets(step, extras)
        self.starts = ended if resets is None else ended | resets
        self.cut_off[step] = truncated & ~terminated
        if self.env.bootstrap == "final" and resets is None:
            self._store_final(step, extras)
        self.episodes.note(step, original_rewards(self.env, rewards).to(self.device), ended, resets, extras)
        if step + 1 < self.buffer.buffer_size:
            store_observations(self.buffer, step + 1, observations)
        else:
            self.last = copied(observations, self.device)
        self.buffer.pos = step + 1
        self.buffer.full = self.buffer.pos == self.buffer.buffer_size

    def _store_resets(self, step: int, extras: Mapping[str, Any]) -> th.Tensor | None:
        """
        Copy which environments only reset themselves.

        :param step: number of the step
        :param extras: of the step
        :return: bool, shape (n_envs,); None for environments that reset themselves in the step that ends an episode
        """
        resets = resets_of(self.env, extras)
        if resets is None:
            return None
        if self.resets is None:
            self.resets = th.zeros_like(self.cut_off)
        self.resets[step] = resets
        return self.resets[step]

    def _store_final(self, step: int, extras: Mapping[str, Any]) -> None:
        """
        Copy the final observations of all environments: which of them mean something is known on the device only.

        :param step: number of the step
        :param extras: of the step
        """
        if "final_obs" not in extras:
            return
        if self.final is None:
            self.final = self.buffer.final_observations()
        columns, final = self.final, extras["final_obs"]
        for name, column in columns.items() if isinstance(columns, dict) else [(None, columns)]:
            column[step] = (final if name is None else final[name]).reshape(column.shape[1:])

    # ------------------------------------------------------------------ at the end

    def finish(
        self,
        values_of: ValuesOf,
        gamma: float,
        value_target: ValueTarget,
        check_observations: bool,
        recorder: Recorder | None = None,
    ) -> tuple[list[Info], th.Tensor]:
        """
        S3, S4: values of time limits, advantages and value targets.

        :param values_of: observations ↦ V
        :param gamma: γ
        :param value_target: what the critic is fitted to
        :param check_observations: whether observations have to be finite
        :param recorder: of graphs, None for none
        :return: SB3's infos of the episodes that ended, in the order in which they did; V of the last observations, shape
            (n_envs,)
        :raises NonFiniteError: if something in the rollout is not finite
        """
        buffer = self.buffer
        cut_off, *episodes = to_host(self.cut_off, *self.episodes.columns(buffer.buffer_size))
        buffer.resets = self.resets
        last_values = values_of(self.last)
        rows, before, final_values = self._add_values_of_time_limits(values_of, gamma, cut_off, last_values)
        self._write_targets(value_target, last_values, recorder)
        looked_at = [buffer.values, buffer.actions, buffer.log_probs, buffer.rewards, last_values]
        if check_observations:
            looked_at += [*parts_of(buffer.observations), *parts_of(self.last)]
        if not bool(th.stack([_all_finite(tensor) for tensor in looked_at]).all()):
            self._explain(last_values, rows, before, final_values, check_observations)
        return self.episodes.infos(*episodes), last_values

    def _write_targets(self, value_target: ValueTarget, last_values: th.Tensor, recorder: Recorder | None) -> None:
        """
        S4, T10: advantages and value targets.

        :param value_target: what the critic is fitted to
        :param last_values: V of the observations after the last step
        :param recorder: of graphs, None for none
        """
        buffer = self.buffer
        own = not is_stock(buffer, "compute_returns_and_advantage")
        if own:
            buffer.compute_returns_and_advantage(last_values, self.starts)
        else:
            buffer.advantages.copy_(targets_of(buffer, None, last_values, self.starts, recorder))
        if value_target != "td_lambda":
            buffer.returns.copy_(targets_of(buffer, value_target, last_values, self.starts, recorder))
        elif not own:
            th.add(buffer.advantages, buffer.values, out=buffer.returns)

    def _add_values_of_time_limits(
        self, values_of: ValuesOf, gamma: float, cut_off: NumpyArray, last_values: th.Tensor
    ) -> tuple[NumpyArray, th.Tensor, th.Tensor]:
        """
        S3: r + γ V in the transitions that a time limit cut off, whose values come from one batch.

        :param values_of: observations ↦ V
        :param gamma: γ
        :param cut_off: bool, shape (n_steps, n_envs)
        :param last_values: V of the observations after the last step
        :return: steps and environments of the transitions, shape (2, n); their rewards before, and the values; shape (n,)
        :raises ValueError: if a final observation is missing
        """
        rows, rewards = np.stack(np.nonzero(cut_off)), self.buffer.rewards
        none = rewards.new_empty(0)
        if self.env.bootstrap == "none" or not rows.size:
            return rows[:, :0], none, none
        steps, environments = th.from_numpy(rows).to(self.device)
        if self.env.bootstrap == "previous":
            values = self.buffer.values[steps, environments]
        elif self.resets is not None:  # the last observation of an episode stands in the row of the reset
            values = next_values(self.buffer.values, last_values)[steps, environments]
        elif self.final is None:
            raise ValueError(
                f"{type(self.env).__name__}: an episode was cut off, but step_tensors gave no extras['final_obs']; give it, "
                "or set bootstrap to 'previous' or 'none'"
            )
        else:
            final = self.final
            if isinstance(final, dict):
                values = values_of({name: column[steps, environments] for name, column in final.items()})
            else:
                values = values_of(final[steps, environments])
        before = rewards[steps, environments]
        rewards[steps, environments] = before + gamma * values
        return rows, before, values

    def _explain(
        self, last_values: th.Tensor, rows: NumpyArray, before: th.Tensor, final_values: th.Tensor, check_observations: bool
    ) -> None:
        """
        Raise the error that names what is not finite, and leave the episodes as begun anew.

        :param last_values: V of the observations after the last step
        :param rows: steps and environments that a time limit cut off, shape (2, n)
        :param before: their rewards, shape (n,)
        :param final_values: V of their final observations, shape (n,)
        :param check_observations: whether observations have to be finite
        """
        buffer = self.buffer
        arrays = {name: to_host(getattr(buffer, name))[0].copy() for name in ("values", "actions", "log_probs", "rewards")}
        arrays["rewards"][rows[0], rows[1]] = to_host(before)[0]
        shown = SimpleNamespace(observations=observations_to_host(buffer.observations), **arrays)
        check_rows(cast(RolloutBuffer, shown), 0, buffer.buffer_size, check_observations)
        error = explain(
            buffer.buffer_size,
            check_observations=check_observations,
            observation=observations_to_host(self.last),
            value=to_host(last_values)[0],
        )
        if error is None and rows.size:
            values, sums = to_host(final_values)[0], to_host(buffer.rewards)[0][rows[0], rows[1]]
            first = slice(bad := int(np.argmin(np.isfinite(values) & np.isfinite(sums))), bad + 1)
            error = explain(
                int(rows[0][bad]), environments=rows[1][first], final_value=values[first], bootstrapped_reward=sums[first]
            )
        if error is not None:
            raise error


def original_rewards(env: TensorEnv, rewards: th.Tensor) -> th.Tensor:
    """
    Rewards before any normalisation.

    :param env: the environments, or a wrapper that normalises
    :param rewards: as it gave them
    :return: shape (n_envs,)
    """
    original = getattr(env, "old_reward", None)  # of a VecNormalize, also through wrappers
    return original if isinstance(original, th.Tensor) else rewards


def copied(observations: Observations[th.Tensor], device: th.device | None = None) -> Observations[th.Tensor]:
    """
    Copies of tensors.

    :param observations: first axis n_envs
    :param device: where to; None to where they are
    :return: the same numbers
    """
    if isinstance(observations, dict):
        return {name: tensor.to(device, copy=True) for name, tensor in observations.items()}
    return observations.to(device, copy=True)


def _all_finite(tensor: th.Tensor) -> th.Tensor:
    """A scalar: whether all entries are finite. The sum of a column's absolute values would overflow."""
    return tensor.isfinite().all()
