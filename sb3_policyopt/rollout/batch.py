"""Transitions as named columns."""

from dataclasses import dataclass, field, replace
from typing import Generic, TypeAlias

import numpy as np
import torch as th

from sb3_policyopt.maths.arrays import ArrayT, NumpyArray
from sb3_policyopt.maths.losses import normalize

Observations: TypeAlias = ArrayT | dict[str, ArrayT]
"""One array, or one for each key of a dict space."""

Index: TypeAlias = slice | NumpyArray | th.Tensor
"""Which rows: a slice, or row numbers."""


@dataclass(slots=True)
class Batch(Generic[ArrayT]):
    """
    Transitions in a model's own arrays: NumPy for the closed form, tensors on the policy's device for torch.

    The first six columns have the names of SB3's ``RolloutBufferSamples``. Rows are flat and never padded.

    :param observations: shape (batch, ...), or a dict of such
    :param actions: shape (batch, ...)
    :param old_values: V_old(s), shape (batch,)
    :param old_log_prob: ln π_old(a|s), shape (batch,)
    :param advantages: A, shape (batch,)
    :param returns: G, what the critic is fitted to, shape (batch,)
    :param context: further columns by name, which a kind of policy or an objective needs: masks, sequence starts, weights.
        Each has one row a transition
    """

    observations: Observations[ArrayT]
    actions: ArrayT
    old_values: ArrayT
    old_log_prob: ArrayT
    advantages: ArrayT
    returns: ArrayT
    context: dict[str, ArrayT] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of transitions."""
        return len(self.old_log_prob)

    def rows(self, index: Index) -> "Batch[ArrayT]":
        """
        Some of the transitions.

        :param index: a slice, or row numbers
        :return: the batch of those rows
        """
        observations = self.observations
        return Batch(
            {key: array[index] for key, array in observations.items()}
            if isinstance(observations, dict)
            else observations[index],
            self.actions[index],
            self.old_values[index],
            self.old_log_prob[index],
            self.advantages[index],
            self.returns[index],
            {name: column[index] for name, column in self.context.items()} if self.context else {},
        )

    def with_advantages(self, advantages: ArrayT) -> "Batch[ArrayT]":
        """
        The same transitions with other advantages.

        :param advantages: shape (batch,)
        :return: a batch that shares the other columns
        """
        return replace(self, advantages=advantages)

    def normalized(self) -> "Batch[ArrayT]":
        """The same with advantages of mean 0 and standard deviation 1."""
        return self.with_advantages(normalize(self.advantages))


def one_array(observations: Observations[ArrayT]) -> ArrayT:
    """
    Observations that are not a dict.

    :param observations: of a space that is no dict
    :return: the same
    """
    assert not isinstance(observations, dict), "the observation space is no dict"
    return observations


def in_numpy(batch: Batch[th.Tensor]) -> Batch[NumpyArray]:
    """
    The memory of tensors on the CPU as arrays. Observations are left out.

    :param batch: tensors
    :return: arrays, actions of shape (batch, n_actions)
    """
    return Batch(
        np.empty((batch.size, 0), np.float32),
        np.reshape(batch.actions.numpy(), (batch.size, -1)),
        batch.old_values.numpy(),
        batch.old_log_prob.numpy(),
        batch.advantages.numpy(),
        batch.returns.numpy(),
        {name: column.numpy() for name, column in batch.context.items()},
    )
