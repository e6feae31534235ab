"""Transitions as named columns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeAlias, TypeVar, cast

import numpy as np
import torch as th

from sb3_policyopt.maths.arrays import ArrayT, NumpyArray
from sb3_policyopt.maths.losses import normalize
from sb3_policyopt.rollout.sequences import Sequences

Observations: TypeAlias = ArrayT | dict[str, ArrayT]
"""One array, or one for each key of a dict space."""

OtherT = TypeVar("OtherT", NumpyArray, th.Tensor)
"""The kind of array that a function makes of another one."""

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
    :param context: further columns by name, which a kind of policy or an objective needs, such as ``action_masks``. Each has
        one row a transition
    :param sequences: for a policy with memory, how the rows follow each other; else None
    :param recurring: whether every minibatch of this size has this same memory
    """

    observations: Observations[ArrayT]
    actions: ArrayT
    old_values: ArrayT
    old_log_prob: ArrayT
    advantages: ArrayT
    returns: ArrayT
    context: dict[str, ArrayT] = field(default_factory=dict)
    sequences: Sequences | None = None
    recurring: bool = False

    @property
    def size(self) -> int:
        """Number of transitions."""
        return len(self.old_log_prob)

    def rows(self, index: Index) -> "Batch[ArrayT]":
        """
        Some of the transitions, which are then in no sequence.

        :param index: a slice, or row numbers
        :return: the batch of those rows
        """
        return Batch(
            each(self.observations, lambda array: array[index]),
            self.actions[index],
            self.old_values[index],
            self.old_log_prob[index],
            self.advantages[index],
            self.returns[index],
            {name: column[index] for name, column in self.context.items()} if self.context else {},
        )

    def pieces(self, size: int) -> "Iterator[Batch[ArrayT]]":
        """
        The transitions in order, in pieces. No sequence is cut.

        :param size: most transitions of a piece; a sequence that has more is a piece by itself
        :return: the pieces
        """
        if self.sequences is None:
            for start in range(0, self.size, size):
                yield self.rows(slice(start, start + size))
        else:
            for numbers in self.sequences.groups(size):
                yield self._of_sequences(self.sequences, numbers)

    def thinned(self, n: int) -> "Batch[ArrayT]":
        """
        Every n-th transition; where they are in sequences, every n-th sequence.

        :param n: 1 for all of them
        :return: the batch of those rows
        """
        if n == 1:
            return self
        if self.sequences is None:
            return self.rows(slice(None, None, n))
        return self._of_sequences(self.sequences, np.arange(0, len(self.sequences.lengths), n))

    def _of_sequences(self, sequences: Sequences, numbers: NumpyArray) -> "Batch[ArrayT]":
        """
        Some of the sequences.

        :param sequences: all of them
        :param numbers: of those that are wanted
        :return: their rows
        """
        rows = sequences.rows_of(numbers)
        contiguous = len(numbers) == 0 or numbers[-1] - numbers[0] == len(numbers) - 1
        batch = self.rows(slice(rows[0], rows[-1] + 1) if contiguous and len(rows) else rows)
        batch.sequences = sequences.some(numbers)
        return batch

    def with_advantages(self, advantages: ArrayT) -> "Batch[ArrayT]":
        """
        The same transitions with other advantages.

        :param advantages: shape (batch,)
        :return: a batch that shares the other columns
        """
        return replace(self, advantages=advantages, recurring=False)

    def kept(self) -> "Batch[ArrayT]":
        """The same with memory of its own, for who keeps several minibatches at a time."""
        if not self.recurring:
            return self
        batch: Any = self
        kept: Any = with_columns(batch, [column.clone() for column in columns_of(batch)])
        return cast("Batch[ArrayT]", kept)

    def normalized(self) -> "Batch[ArrayT]":
        """The same with advantages of mean 0 and standard deviation 1."""
        return self.with_advantages(normalize(self.advantages))


def columns_of(batch: Batch[th.Tensor]) -> list[th.Tensor]:
    """
    The columns of a batch in a fixed order, for :func:`with_columns`.

    :param batch: tensors, in no sequences
    :return: observations, the five others, the context
    """
    observations = batch.observations
    first = list(observations.values()) if isinstance(observations, dict) else [observations]
    others = [batch.actions, batch.old_values, batch.old_log_prob, batch.advantages, batch.returns]
    return [*first, *others, *batch.context.values()]


def with_columns(batch: Batch[th.Tensor], columns: Sequence[th.Tensor], recurring: bool = False) -> Batch[th.Tensor]:
    """
    The inverse of :func:`columns_of`.

    :param batch: which names the columns
    :param columns: of any number of rows
    :param recurring: see :class:`Batch`
    :return: a batch of these columns
    """
    given, observations = iter(columns), batch.observations
    first = {name: next(given) for name in observations} if isinstance(observations, dict) else next(given)
    actions, old_values, old_log_prob, advantages, returns = (next(given) for _ in range(5))
    context = dict(zip(batch.context, given, strict=True))
    return Batch(first, actions, old_values, old_log_prob, advantages, returns, context, recurring=recurring)


def each(observations: Observations[ArrayT], function: Callable[[ArrayT], OtherT]) -> Observations[OtherT]:
    """
    A function of observations, array by array.

    :param observations: one array, or one for each key
    :param function: of one of them
    :return: its results in the same form
    """
    if isinstance(observations, dict):
        return {key: function(array) for key, array in observations.items()}
    return function(observations)


def n_rows(observations: Observations[ArrayT]) -> int:
    """
    Length of the first axis.

    :param observations: shape (n, ...), or a dict of such
    :return: n
    """
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def one_array(observations: Observations[ArrayT]) -> ArrayT:
    """
    Observations that are not a dict.

    :param observations: of a space that is no dict
    :return: the same
    """
    assert not isinstance(observations, dict), "the observation space is no dict"
    return observations


def of_features(batch: Batch[th.Tensor]) -> Batch[th.Tensor]:
    """
    What is needed above the features: the columns without the observations.

    :param batch: tensors
    :return: tensors, actions of shape (batch, n_actions)
    """
    actions = batch.actions.reshape(batch.size, -1)
    return replace(batch, observations=batch.returns.new_empty((batch.size, 0)), actions=actions)


def in_numpy(batch: Batch[th.Tensor]) -> Batch[NumpyArray]:
    """
    The memory of tensors on the CPU as arrays. Observations are left out.

    :param batch: tensors
    :return: arrays, actions of shape (batch, n_actions)
    """
    return as_arrays(of_features(batch))


def in_torch(batch: Batch[NumpyArray]) -> Batch[th.Tensor]:
    """
    The memory of arrays as tensors on the CPU.

    :param batch: arrays, those of observations no dict
    :return: tensors
    """
    return _converted(batch, th.from_numpy)


def as_arrays(batch: Batch[th.Tensor]) -> Batch[NumpyArray]:
    """
    The memory of tensors on the CPU as arrays: the inverse of :func:`in_torch`.

    :param batch: tensors, those of observations no dict
    :return: arrays
    """
    return _converted(batch, th.Tensor.numpy)


def _converted(batch: Batch[Any], convert: Callable[[Any], Any]) -> Batch[Any]:
    return Batch(
        convert(one_array(batch.observations)),
        convert(batch.actions),
        convert(batch.old_values),
        convert(batch.old_log_prob),
        convert(batch.advantages),
        convert(batch.returns),
        {name: convert(column) for name, column in batch.context.items()},
        batch.sequences,
    )
