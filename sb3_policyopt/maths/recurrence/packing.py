"""The order in which a recurrent network computes the rows of sequences of different lengths (R1)."""

from typing import cast

import numpy as np
import torch as th

from sb3_policyopt.maths.arrays import ArrayT, NumpyArray


class Packing:
    """
    Sequences whose rows lie one sequence after another, and the order of those rows by time.

    The sequences are sorted by decreasing length; equal lengths keep their order. The sequences that still run at time t are
    then the first n_t of them, and their rows are a contiguous block of the time-major order.

    :param lengths: rows of each sequence, int, shape (n_seq,); positive
    :raises ValueError: if there is no sequence, or one without rows
    """

    def __init__(self, lengths: NumpyArray) -> None:
        lengths = np.asarray(lengths, np.int64)
        if lengths.ndim != 1 or not len(lengths) or lengths.min() < 1:
            raise ValueError(f"lengths must be a vector of positive numbers, not {lengths.tolist()}")
        self.lengths = lengths
        self.n_sequences = len(lengths)
        self.n_rows = int(lengths.sum())
        self.sequence_order = np.argsort(-lengths, kind="stable")
        """Which sequence has the k-th place after sorting, shape (n_seq,)."""
        n_times = int(lengths.max())
        ending = np.bincount(lengths, minlength=n_times + 1)[:n_times]
        running = self.n_sequences - np.cumsum(ending)
        self.running: list[int] = running.tolist()
        """n_t: how many sequences run at each time."""
        self.starts: list[int] = [0, *np.cumsum(running)[:-1].tolist()]
        """Where the block of each time begins in the time-major order."""
        time = np.repeat(np.arange(n_times), running)
        place = np.arange(self.n_rows) - np.repeat(self.starts, running)
        first_row = np.cumsum(lengths) - lengths
        self.order = first_row[self.sequence_order][place] + time
        """Row in the flat order of each row in the time-major order, shape (n_rows,)."""
        self.inverse = np.empty_like(self.order)
        """Row in the time-major order of each row in the flat order, shape (n_rows,)."""
        self.inverse[self.order] = np.arange(self.n_rows)
        before = np.repeat([0, *(self.n_sequences + start for start in self.starts[:-1])], running)
        self._previous = before + place
        self._equal = running[-1] == self.n_sequences
        self._on_device: dict[tuple[int, th.device], th.Tensor] = {}

    def _take(self, array: ArrayT, index: NumpyArray, axis: int = 0) -> ArrayT:
        """Entries of an array along one axis; an index of this object goes to each device once."""
        if isinstance(array, np.ndarray):
            return cast(NumpyArray, array.take(index, axis))
        key = (id(index), array.device)
        if key not in self._on_device:
            self._on_device[key] = th.as_tensor(index, device=array.device)
        return array.index_select(axis, self._on_device[key])

    def to_time_major(self, array: ArrayT) -> ArrayT:
        """
        :param array: rows in the flat order, shape (n_rows, n)
        :return: a copy in the time-major order
        """
        return self._take(array, self.order)

    def to_flat(self, array: ArrayT) -> ArrayT:
        """
        :param array: rows in the time-major order, shape (n_rows, n)
        :return: a copy in the flat order
        """
        return self._take(array, self.inverse)

    def sorted_states(self, states: ArrayT) -> ArrayT:
        """
        :param states: of the sequences in their own order, shape (n_layers, n_seq, n)
        :return: a copy, by decreasing length of the sequences
        """
        return self._take(states, self.sequence_order, 1)

    def previous(self, history: ArrayT) -> ArrayT:
        """
        The state before each row.

        :param history: initial states and then the states after each row in the time-major order, shape (n_seq + n_rows, n)
        :return: shape (n_rows, n), in the time-major order; a view if all sequences have the same length
        """
        return history[: self.n_rows] if self._equal else self._take(history, self._previous)

    def blocks(self, array: ArrayT) -> list[ArrayT]:
        """
        :param array: rows in the time-major order, shape (n_rows, n) or (blocks, n_rows, n)
        :return: for each time a view, shape (n_t, n) or (blocks, n_t, n)
        """
        if isinstance(array, np.ndarray):
            return [array[..., start : start + n, :] for start, n in zip(self.starts, self.running, strict=True)]
        return list(th.split(array, self.running, -2))
