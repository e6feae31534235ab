"""Means over the minibatches of all ranks: advantages, gradients and what is logged."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch as th

from sb3_policyopt.maths import losses
from sb3_policyopt.models.model import Batch, Terms
from sb3_policyopt.parallel.collectives import gather, max_, sum_
from sb3_policyopt.parallel.launcher import world_size


def normalize(advantages: Any) -> Any:
    """
    Advantages with mean 0 and standard deviation 1 over all ranks.

    :param advantages: shape (batch,)
    :return: shape (batch,)
    """
    if world_size() == 1:
        return losses.normalize(advantages)
    return _normalize_pieces([advantages], _meet([advantages])[1])[0]


def in_step(cut: Callable[[bool], Iterator[Batch]], n_passes: int, normalized: bool) -> Iterator[Iterator[Batch]]:
    """
    Let the ranks take their minibatches together, in several passes over the same rollout.

    :param cut: makes the minibatches of one pass over this rank's rollout; its argument is whether to normalise advantages
    :param n_passes: number of passes
    :param normalized: whether advantages are normalised, over the minibatches that all ranks take at a time
    :return: each pass's minibatches; under a launcher as many on each rank, the missing ones empty
    """
    if world_size() == 1:
        yield from (cut(normalized) for _ in range(n_passes))
        return
    n_minibatches = mean = None
    for _ in range(n_passes):
        batches = list(cut(False))
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
            batches = [batch._replace(advantages=piece) for batch, piece in zip(batches, advantages, strict=True)]
        yield iter(batches)


def _meet(pieces: list[Any]) -> tuple[int, float]:
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
def _normalize_pieces(pieces: list[Any], pivot: float) -> list[Any]:
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


class SharedGradient:
    """
    The mean of a gradient and of the terms of its loss over the minibatches of all ranks, with one all-reduce.

    :param gradient: where the engine leaves this rank's gradient and expects that of all; shape (n,)
    """

    def __init__(self, gradient: th.Tensor) -> None:
        self.alone = world_size() == 1
        self.gradient: Any = gradient
        self.names: list[str] = []

    def __call__(self, compute: Callable[..., Terms], minibatch: Batch, *arguments: Any) -> Terms:
        """
        Compute a gradient together.

        :param compute: of the engine, leaves this rank's gradient of a mean over a minibatch
        :param minibatch: this rank's; may be empty, but not the first
        :param arguments: further ones of ``compute``
        :return: the terms; those whose names end in ``_max`` are this rank's
        """
        if self.alone:
            return compute(minibatch, *arguments)
        terms = compute(minibatch, *arguments) if minibatch.size else {}
        if not self.names:
            self._prepare_message(terms)
        if terms:
            numbers = [terms[name] for name in self.names]
            self.xp.multiply(self.gradient, minibatch.size, out=self.gradients)
            self.numbers[:] = numbers if self.xp is np else th.stack(numbers)
            self.numbers *= minibatch.size
            self.sizes[:] = minibatch.size
        else:
            self.message.zero_()
        sum_(self.message)
        self.xp.divide(self.gradients, self.sizes, out=self.gradient)
        return {**terms, **dict(zip(self.names, self.numbers / self.sizes, strict=True))}

    def _prepare_message(self, terms: Terms) -> None:
        """
        Lay out what the ranks add up: their gradients, terms and sizes, the first two times the third.

        :param terms: of the first minibatch
        """
        self.names = [name for name in terms if not name.endswith("_max")]
        self.message = self.gradient.new_empty(len(self.gradient) + len(self.names) + 1)
        message: Any = self.message
        self.xp: Any = th
        if not isinstance(terms[self.names[0]], th.Tensor):  # the engine works in NumPy, then so does this
            self.xp, message, self.gradient = np, message.numpy(), self.gradient.numpy()
        n = len(self.gradient)
        self.gradients, self.numbers, self.sizes = message[:n], message[n:-1], message[-1:]


def reduce_maxima(terms: dict[str, float]) -> dict[str, float]:
    """
    The largest over all ranks of what is logged as a maximum.

    :param terms: by name; names ending in ``_max`` are reduced
    :return: all terms
    """
    names = sorted(name for name in terms if name.endswith("_max"))
    if world_size() == 1 or not names:
        return terms
    maxima = max_(th.tensor([terms[name] for name in names], dtype=th.float64)).tolist()
    return {**terms, **dict(zip(names, maxima, strict=True))}
