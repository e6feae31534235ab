"""Means over the minibatches of all ranks: advantages, gradients and what is logged."""

from collections.abc import Collection, Iterator
from types import ModuleType
from typing import Generic

import numpy as np
import torch as th

from sb3_policyopt.maths.arrays import Array, ArrayT, Scalar
from sb3_policyopt.maths.terms import Maximum, Terms, value_of
from sb3_policyopt.objectives.objective import Objective
from sb3_policyopt.optimisation.flat_parameters import FlatParameters
from sb3_policyopt.parallel.collectives import gather, sum_
from sb3_policyopt.parallel.launcher import rank
from sb3_policyopt.parallel.team import Gradient
from sb3_policyopt.rollout.batch import Batch
from sb3_policyopt.rollout.minibatches import RolloutData


def normalize(advantages: ArrayT) -> ArrayT:
    """
    Advantages with mean 0 and standard deviation 1 over all ranks.

    :param advantages: of this rank, shape (batch,)
    :return: shape (batch,)
    """
    return _normalize_pieces([advantages], _meet([advantages])[1])[0]


def passes(data: RolloutData[ArrayT], batch_size: int, n_passes: int, normalized: bool) -> Iterator[Iterator[Batch[ArrayT]]]:
    """
    Let the ranks take their minibatches together, in several passes over the same rollout.

    :param data: the rollout of this rank
    :param batch_size: transitions a minibatch
    :param n_passes: number of passes
    :param normalized: whether advantages are normalised, over the minibatches that all ranks take at a time
    :return: each pass's minibatches, as many on each rank, the missing ones empty
    :raises ValueError: if a buffer's own ``get`` gives more minibatches than in the first pass
    """
    n_minibatches = mean = None
    for _ in range(n_passes):
        batches = [batch.kept() for batch in data.minibatches(batch_size, False)]
        if n_minibatches is None or mean is None:
            n_minibatches, mean = _meet([batch.advantages for batch in batches])
        if len(batches) > n_minibatches:
            raise ValueError(
                f"rollout_buffer_class: its get() gave {len(batches)} minibatches, but in the first pass over this rollout no "
                f"rank had more than {n_minibatches}; ranks take their minibatches together, so let their number stay"
            )
        batches += [batches[0].rows(slice(0, 0))] * (n_minibatches - len(batches))
        if normalized:
            advantages = _normalize_pieces([batch.advantages for batch in batches], mean)
            batches = [batch.with_advantages(piece) for batch, piece in zip(batches, advantages, strict=True)]
        yield iter(batches)


def _meet(pieces: list[ArrayT]) -> tuple[int, float]:
    """
    What the ranks have to know of each other before the first pass.

    :param pieces: the advantages of each minibatch of this rank, shape (batch,) each
    :return: the largest number of minibatches of a rank, and the mean of all advantages that are finite
    """
    values = th.cat([th.as_tensor(piece) for piece in pieces]).double()
    finite = values[values.isfinite()]  # one that is not spoils its own minibatch, which is skipped, and no other
    n_pieces, counts, sums = zip(*gather((len(pieces), len(finite), float(finite.sum()))), strict=True)
    return max(n_pieces), sum(sums) / max(1, sum(counts))


@np.errstate(invalid="ignore")  # a piece with an advantage that is not finite becomes NaN, and its minibatch is skipped
def _normalize_pieces(pieces: list[ArrayT], pivot: float) -> list[ArrayT]:
    """
    Normalise several batches, each over all ranks, with one reduction for all of them.

    Sums of squares lose their digits if the mean is far from zero. Here both sums are of what is left of the advantages once
    the mean of all batches is taken off, so that each batch's own mean is small beside its deviation.

    :param pieces: shape (batch,) each, as many on every rank; empty ones count for nothing
    :param pivot: the mean of all batches of all ranks, the same bits on each
    :return: the same shapes
    """
    sizes = [len(piece) for piece in pieces]
    values = np.concatenate([piece.cpu().numpy() if isinstance(piece, th.Tensor) else piece for piece in pieces])
    piece_of = np.repeat(np.arange(len(pieces)), sizes)
    shifted = values.astype(np.float64) - pivot
    powers = [np.bincount(piece_of, power, len(pieces)) for power in (np.ones_like(shifted), shifted, shifted**2)]
    counts, sums, squares = sum_(th.from_numpy(np.stack(powers))).numpy()
    means = sums / np.maximum(counts, 1)
    variances = np.maximum(squares - sums * means, 0) / np.maximum(counts - 1, 1)
    scales = 1 / (np.sqrt(variances) + 1e-8)
    normal = ((shifted - means[piece_of]) * scales[piece_of]).astype(values.dtype)
    normal = np.where(counts[piece_of] > 1, normal, values)
    parts = np.split(normal, np.cumsum(sizes[:-1]))
    return [
        th.from_numpy(part).to(piece.device) if isinstance(piece, th.Tensor) else part
        for part, piece in zip(parts, pieces, strict=True)
    ]


class SharedGradient(Generic[ArrayT]):
    """
    The mean of a gradient and of the terms of its loss over the minibatches of all ranks, with one all-reduce.

    A parameter has no gradient, rather than one of 0, if the loss depends on it on no rank. On a GPU a second exchange, on the
    CPU, says so, so that nobody waits for the device.

    :param compute: leaves this rank's gradient of a mean over a minibatch in ``flat.gradient``
    :param flat: the parameters; its gradient becomes the mean over all ranks
    :param start: where the stretch of the flat vector begins that is exchanged; it ends with the vector
    """

    def __init__(self, compute: Gradient[Batch[ArrayT]], flat: FlatParameters, start: int = 0) -> None:
        self.compute: Gradient[Batch[ArrayT]] = compute
        self.flat = flat
        self.gradient = flat.gradient[start:]
        self.names: list[str] = []

    def __call__(self, objective: Objective, batch: Batch[ArrayT]) -> Terms:
        """
        Compute a gradient together.

        :param objective: what is minimised
        :param batch: of this rank; may be empty, but not the first
        :return: the terms; a :class:`Maximum` is this rank's
        :raises ValueError: if the names of the terms differ between the ranks, or from those of the first minibatch
        """
        terms = self.compute(objective, batch) if batch.size else {}
        if not self.names:
            self._prepare_message(terms)
        if terms:
            if terms.keys() != self.all_names:
                raise ValueError(_other_terms(f"the minibatches of rank {rank()}", self.all_names, terms.keys()))
            self.library.multiply(self.own, batch.size, out=self.gradients)
            self._note([value_of(terms[name]) for name in self.names])
            self.numbers *= batch.size
            self.sizes[:] = batch.size
            self.present.fill_(1)
            for i in self.flat.absent:
                self.present[i] = 0
        else:
            self.message.zero_()
            self.present.zero_()
        sum_(self.message)
        if self.gradient.is_cuda:
            sum_(self.present)
        self.library.divide(self.gradients, self.sizes, out=self.own)
        self.flat.absent = set() if self.present.all() else set((self.present == 0).nonzero().flatten().tolist())
        return {**terms, **dict(zip(self.names, self.numbers / self.sizes, strict=True))}

    def _note(self, values: list[Scalar]) -> None:
        """
        Put this rank's terms into the message.

        :param values: scalars, in the order of ``names``
        """
        if isinstance(self.numbers, th.Tensor):
            like = self.numbers
            like.copy_(th.stack([th.as_tensor(value, dtype=like.dtype, device=like.device) for value in values]))
        else:
            self.numbers[:] = values

    def _prepare_message(self, terms: Terms) -> None:
        """
        Lay out what the ranks add up: their gradients, terms and sizes, the first two times the third, and on the CPU whether
        each parameter has a gradient.

        :param terms: of the first minibatch
        """
        self.names = sorted(name for name, term in terms.items() if not isinstance(term, Maximum))
        self.all_names = frozenset(terms)
        for other, names in enumerate(gather(sorted(terms))):
            if frozenset(names) != self.all_names:
                raise ValueError(_other_terms(f"rank {rank()} and rank {other}", self.all_names, names))
        n, last, flags = len(self.gradient), len(self.gradient) + len(self.names), len(self.flat.parameters)
        own_flags = self.gradient.is_cuda
        self.message = self.gradient.new_empty(last + 1 + (0 if own_flags else flags))
        self.present = th.empty(flags, dtype=th.float32) if own_flags else self.message[last + 1 :]
        in_torch = isinstance(value_of(terms[self.names[0]]), th.Tensor)
        self.library: ModuleType = th if in_torch else np
        self.own: Array = self.gradient if in_torch else self.gradient.numpy()
        message: Array = self.message if in_torch else self.message.numpy()
        self.gradients, self.numbers, self.sizes = message[:n], message[n:last], message[last : last + 1]


def _other_terms(where: str, some: Collection[str], others: Collection[str]) -> str:
    """
    What is wrong where the terms of a loss have other names.

    :param where: of which minibatches
    :param some: names
    :param others: other names
    :return: an error message
    """
    return (
        f"loss: the terms that it returns must have the same names in every minibatch of every rank, but those of {where} "
        f"differ in {', '.join(sorted(set(some) ^ set(others)))}; give a term that does not occur the value 0"
    )


def reduce_maxima(terms: Terms) -> Terms:
    """
    The largest over all ranks of what is logged as a maximum.

    :param terms: reduced over the update
    :return: all terms
    :raises ValueError: if the ranks have different ones
    """
    mine = {name: float(value_of(term)) for name, term in terms.items() if isinstance(term, Maximum)}
    of_ranks = gather(mine)
    for other, theirs in enumerate(of_ranks):
        if theirs.keys() != mine.keys():
            raise ValueError(_other_terms(f"rank {rank()} and rank {other}", mine, theirs))
    return {**terms, **{name: Maximum(float(np.max([values[name] for values in of_ranks]))) for name in mine}}
