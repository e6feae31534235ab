"""P6: a rollout, shuffled and cut into minibatches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Generic

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples

from sb3_policyopt.graphs import Recorder, Task
from sb3_policyopt.maths.arrays import ArrayT, NumpyArray
from sb3_policyopt.maths.losses import normalize_pieces
from sb3_policyopt.rollout.batch import Batch, columns_of, in_torch, one_array, with_columns
from sb3_policyopt.rollout.buffers import own_samples


class RolloutData(ABC, Generic[ArrayT]):
    """The transitions of one rollout, as often as an update needs them."""

    @abstractmethod
    def whole(self) -> Iterator[Batch[ArrayT]]:
        """
        All transitions.

        :return: one batch; several where a buffer's own ``get`` gives several
        """

    @abstractmethod
    def minibatches(self, batch_size: int, normalized: bool) -> Iterator[Batch[ArrayT]]:
        """
        One pass over all transitions in random order.

        :param batch_size: transitions a minibatch; the last one may be smaller
        :param normalized: whether to normalise the advantages of each minibatch by themselves
        :return: the minibatches
        """


class ShuffledRows(RolloutData[Any]):
    """
    NumPy arrays: a pass orders all rows anew at once, so that minibatches are contiguous pieces. Where torch will compute,
    they are handed out as tensors on the same memory.

    :param rollout: all transitions; columns of actions lie together in memory, as those of the means do
    :param before_pass: called at the start of each pass
    :param takes_tensors: number of rows of a batch ↦ whether batches of so many are handed out as tensors
    """

    def __init__(
        self, rollout: Batch[NumpyArray], before_pass: Callable[[], None], takes_tensors: Callable[[int], bool]
    ) -> None:
        self.rollout = rollout
        self.before_pass = before_pass
        self.takes_tensors = takes_tensors

    def whole(self) -> Iterator[Batch[Any]]:
        """All transitions in one batch."""
        yield in_torch(self.rollout) if self.takes_tensors(self.rollout.size) else self.rollout

    def minibatches(self, batch_size: int, normalized: bool) -> Iterator[Batch[Any]]:
        """One ``np.random.permutation`` a pass, as SB3's buffer draws it."""
        self.before_pass()
        rollout = self.rollout
        order = np.random.permutation(rollout.size)
        advantages = rollout.advantages.take(order)
        shuffled = Batch(
            one_array(rollout.observations).take(order, 0),
            rollout.actions.T.take(order, 1).T,
            rollout.old_values.take(order),
            rollout.old_log_prob.take(order),
            normalize_pieces(advantages, batch_size) if normalized else advantages,
            rollout.returns.take(order),
            {name: column.take(order, 0) for name, column in rollout.context.items()},
        )
        tensors = in_torch(shuffled) if self.takes_tensors(min(batch_size, rollout.size)) else None
        for start in range(0, rollout.size, batch_size):
            yield (shuffled if tensors is None else tensors).rows(slice(start, start + batch_size))


class GatheredRows(RolloutData[th.Tensor]):
    """
    Tensors: each minibatch gathers its rows by number, on the device where they are.

    :param rollout: all transitions
    :param recorder: gathers by a graph, with memory of the rollout that never moves; None for no graph
    """

    def __init__(self, rollout: Batch[th.Tensor], recorder: Recorder | None = None) -> None:
        self.rollout = rollout
        self.recorder = recorder

    def whole(self) -> Iterator[Batch[th.Tensor]]:
        """All transitions in one batch."""
        yield self.rollout

    def minibatches(self, batch_size: int, normalized: bool) -> Iterator[Batch[th.Tensor]]:
        """One ``np.random.permutation`` and one transfer of it a pass."""
        size = self.rollout.size
        order = th.as_tensor(np.random.permutation(size), device=self.rollout.returns.device)
        for start in range(0, size, batch_size):
            rows = order[start : start + batch_size]
            if self.recorder is None:
                batch = self.rollout.rows(rows)
                yield batch.normalized() if normalized else batch
            else:
                yield self._replayed(self.recorder, rows, normalized)

    def _replayed(self, recorder: Recorder, rows: th.Tensor, normalized: bool) -> Batch[th.Tensor]:
        """
        Gather rows by a graph.

        :param recorder: of graphs
        :param rows: their numbers
        :param normalized: whether to normalise their advantages
        :return: the minibatch, whose memory is that of the next one
        """

        def gather(rows: th.Tensor, *columns: th.Tensor) -> tuple[th.Tensor, ...]:
            batch = with_columns(self.rollout, [column[rows] for column in columns])
            return tuple(columns_of(batch.normalized() if normalized else batch))

        source = columns_of(self.rollout)
        columns = recorder.call(Task("minibatches", normalized, gather, [rows, *source], fixed=range(1, len(source) + 1)))
        return with_columns(self.rollout, columns, recurring="minibatches" not in recorder.refusals)


class OwnSamples(RolloutData[th.Tensor]):
    """
    Whatever the buffer's own ``get`` yields.

    :param buffer: the rollout buffer of an algorithm, with a method of its own
    :param to_batch: makes a batch of tensors of SB3's samples
    """

    def __init__(
        self,
        buffer: RolloutBuffer,
        to_batch: Callable[[RolloutBufferSamples | DictRolloutBufferSamples], Batch[th.Tensor]],
    ) -> None:
        self.buffer = buffer
        self.to_batch = to_batch

    def whole(self) -> Iterator[Batch[th.Tensor]]:
        """What ``get`` yields when asked for all in one."""
        return map(self.to_batch, own_samples(self.buffer, None))

    def minibatches(self, batch_size: int, normalized: bool) -> Iterator[Batch[th.Tensor]]:
        """What ``get`` yields."""
        for batch in map(self.to_batch, own_samples(self.buffer, batch_size)):
            yield batch.normalized() if normalized else batch
