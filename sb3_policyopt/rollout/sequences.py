"""R1: rows as sequences, cut where episodes start, with the states before each of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch as th

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.maths.recurrence import Packing
from sb3_policyopt.rollout.context import Memory


@dataclass(frozen=True)
class Sequences:
    """
    How the rows of a batch lie in sequences, one sequence after another and none of them padded.

    :param lengths: rows of each sequence, at least 1, shape (n_sequences,)
    :param begins_episode: whether its first row is the first of an episode, bool, shape (n_sequences,)
    :param initial: the states before its first row, which are zero where an episode begins; tensors with n = n_sequences
    """

    lengths: NumpyArray
    begins_episode: NumpyArray
    initial: Memory

    @cached_property
    def ends(self) -> NumpyArray:
        """The row after each sequence's last one, shape (n_sequences,)."""
        return np.cumsum(self.lengths)

    @cached_property
    def padded(self) -> th.Tensor:
        """
        The row at each time of each sequence, int64, shape (n_sequences, longest).

        After a sequence's end its last row is repeated.
        """
        times = np.arange(self.lengths.max(initial=0))
        rows = np.minimum(times, self.lengths[:, None] - 1) + (self.ends - self.lengths)[:, None]
        return th.from_numpy(rows)

    @cached_property
    def is_padding(self) -> th.Tensor:
        """Which entries of :attr:`padded` stand after their sequence's end, bool, shape (n_sequences, longest)."""
        return th.from_numpy(np.arange(self.lengths.max(initial=0)) >= self.lengths[:, None])

    @cached_property
    def places(self) -> th.Tensor:
        """Where each row stands in the flattened :attr:`padded`, int64, shape (n_rows,)."""
        longest = self.lengths.max(initial=0)
        first = np.arange(len(self.lengths)) * longest
        rows = np.arange(self.ends[-1] if len(self.ends) else 0)
        return th.from_numpy(rows + np.repeat(first - (self.ends - self.lengths), self.lengths))

    @cached_property
    def packing(self) -> Packing:
        """Their order by time."""
        return Packing(self.lengths)

    def some(self, numbers: NumpyArray) -> "Sequences":
        """
        Some of the sequences.

        :param numbers: of the sequences, shape (n,)
        :return: those, in that order
        """
        return Sequences(self.lengths[numbers], self.begins_episode[numbers], self.initial.of_environments(numbers))

    def rows_of(self, numbers: NumpyArray) -> NumpyArray:
        """
        The rows of some sequences.

        :param numbers: of the sequences, shape (n,)
        :return: row numbers, shape (their total length,)
        """
        pieces = [np.arange(end - length, end) for length, end in zip(self.lengths, self.ends, strict=True)]
        return np.concatenate([pieces[number] for number in numbers] or [np.empty(0, np.int64)])

    def groups(self, size: int) -> Iterator[NumpyArray]:
        """
        Groups of successive sequences.

        :param size: most rows of a group; a sequence that is longer is a group by itself
        :return: the numbers of each group's sequences
        """
        first, rows = 0, 0
        for number, length in enumerate(self.lengths):
            if rows and rows + length > size:
                yield np.arange(first, number)
                first, rows = number, 0
            rows += length
        yield np.arange(first, len(self.lengths))


def cuts(episode_starts: NumpyArray, n_steps: int, sequence_length: int | None) -> NumpyArray:
    """
    R1: where sequences start: with an environment's first row, with an episode, and after ``sequence_length`` rows.

    :param episode_starts: bool, shape (n_envs · n_steps,)
    :param n_steps: rows of each environment
    :param sequence_length: most rows of a sequence, None for no limit
    :return: bool, the same shape
    """
    starts = episode_starts.copy()
    starts[::n_steps] = True
    if sequence_length is not None:
        rows = np.arange(len(starts))
        since_start = rows - np.maximum.accumulate(np.where(starts, rows, 0))
        starts |= since_start % sequence_length == 0
    return starts


def to_padded(rows: th.Tensor, sequences: Sequences) -> th.Tensor:
    """
    Rows in the shape that a recurrent network takes.

    :param rows: shape (n_rows, ...)
    :param sequences: in which they lie
    :return: shape (n_sequences, longest, ...)
    """
    return rows[sequences.padded.to(rows.device)]


def from_padded(padded: th.Tensor, sequences: Sequences) -> th.Tensor:
    """
    The inverse of :func:`to_padded`.

    :param padded: shape (n_sequences · longest, ...)
    :param sequences: in which its rows lie
    :return: shape (n_rows, ...)
    """
    return padded[sequences.places.to(padded.device)]
