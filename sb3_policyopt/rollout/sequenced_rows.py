"""R1: a rollout of a policy with memory, cut into minibatches of sequences."""

from collections.abc import Iterator

import numpy as np
import torch as th

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Batch
from sb3_policyopt.rollout.context import Memory
from sb3_policyopt.rollout.minibatches import RolloutData
from sb3_policyopt.rollout.sequences import Sequences, cuts


class SequencedRows(RolloutData[th.Tensor]):
    """
    A rollout whose rows belong to sequences.

    :param rollout: all transitions, those of the first environment first
    :param episode_starts: whether an episode starts with a row, bool, shape (n_rows,)
    :param states: the states before each row, four arrays of shape (n_rows, n_layers, hidden): of the actor hidden and cell,
        of the critic hidden and cell
    :param n_steps: rows of each environment
    :param sequence_length: most rows of a sequence. Then a pass shuffles the sequences. None for no limit: a pass then goes
        through the rollout in order, from a row that is drawn, as sb3-contrib's
    """

    def __init__(
        self,
        rollout: Batch[th.Tensor],
        episode_starts: NumpyArray,
        states: tuple[NumpyArray, ...],
        n_steps: int,
        sequence_length: int | None,
    ) -> None:
        self.rollout = rollout
        self.episode_starts = episode_starts
        self.states = states
        self.sequence_length = sequence_length
        self.cuts = cuts(episode_starts, n_steps, sequence_length)

    def whole(self) -> Iterator[Batch[th.Tensor]]:
        """All transitions in one batch."""
        yield self.batch_of(np.arange(self.rollout.size), self.cuts)

    def minibatches(self, batch_size: int, normalized: bool) -> Iterator[Batch[th.Tensor]]:
        """With ``sequence_length`` one ``np.random.permutation`` of the sequences a pass; else one ``np.random.randint``."""
        size = self.rollout.size
        if self.sequence_length is None:
            order = np.roll(np.arange(size), -np.random.randint(size))
        else:
            sequences = np.split(np.arange(size), np.flatnonzero(self.cuts)[1:])
            order = np.concatenate([sequences[number] for number in np.random.permutation(len(sequences))])
        for start in range(0, size, batch_size):
            rows = order[start : start + batch_size]
            batch = self.batch_of(rows, self.cuts[rows])
            yield batch.normalized() if normalized else batch

    def batch_of(self, rows: NumpyArray, starts: NumpyArray) -> Batch[th.Tensor]:
        """
        Some rows, with their sequences.

        :param rows: row numbers
        :param starts: whether a sequence starts with each, bool; with the first one does in any case
        :return: the batch
        """
        at = np.flatnonzero(starts)
        if len(at) == 0 or at[0] != 0:
            at = np.concatenate(([0], at))
        first = rows[at]
        begins_episode = self.episode_starts[first]
        device = self.rollout.returns.device
        hidden_pi, cell_pi, hidden_vf, cell_vf = (
            th.as_tensor(initial_states(state, first, begins_episode), device=device) for state in self.states
        )
        batch = self.rollout.rows(slice(rows[0], rows[-1] + 1) if is_a_range(rows) else th.from_numpy(rows).to(device))
        batch.sequences = Sequences(
            np.diff(at, append=len(rows)), begins_episode, Memory((hidden_pi, cell_pi), (hidden_vf, cell_vf))
        )
        return batch


def initial_states(states: NumpyArray, rows: NumpyArray, begins_episode: NumpyArray) -> NumpyArray:
    """
    R1: h before some rows, zero where an episode begins.

    :param states: before each row of the rollout, shape (n_rows, n_layers, hidden)
    :param rows: row numbers, shape (n,)
    :param begins_episode: bool, shape (n,)
    :return: shape (n_layers, n, hidden)
    """
    initial: NumpyArray = states[rows]
    initial[begins_episode] = 0
    return np.ascontiguousarray(initial.swapaxes(0, 1))


def is_a_range(rows: NumpyArray) -> bool:
    """
    Whether row numbers follow each other.

    :param rows: different row numbers, at least one
    :return: True if each is one more than the one before
    """
    return bool(rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all())
