"""Means over the minibatches of all ranks: advantages, gradients and what is logged."""

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import torch as th

from sb3_policyopt.distributed import gather, max_, sum_, world_size
from sb3_policyopt.engines.engine import Batch, Terms
from sb3_policyopt.maths import losses


def normalize(advantages: Any) -> Any:
    """
    Advantages with mean 0 and standard deviation 1 over all ranks.

    :param advantages: shape (batch,)
    :return: shape (batch,)
    """
    if world_size() == 1:
        return losses.normalize(advantages)
    return _normalize_pieces([advantages], [sum(gather(len(advantages)))])[0]


def in_step(cut: Callable[[bool], Iterator[Batch]], normalized: bool) -> Iterator[Batch]:
    """
    Let the ranks take their minibatches together.

    :param cut: makes the minibatches of one pass over this rank's rollout; its argument is whether to normalise advantages
    :param normalized: whether advantages are normalised, over the minibatches that all ranks take at a time
    :return: the minibatches; under a launcher as many on each rank, the missing ones empty
    """
    if world_size() == 1:
        yield from cut(normalized)
        return
    batches = list(cut(False))
    totals = [sum(sizes) for sizes in zip_longest(*gather([batch.size for batch in batches]), fillvalue=0)]
    batches += [batches[0].rows(slice(0, 0))] * (len(totals) - len(batches))
    if normalized:
        advantages = _normalize_pieces([batch.advantages for batch in batches], totals)
        batches = [batch._replace(advantages=piece) for batch, piece in zip(batches, advantages, strict=True)]
    yield from batches


def _normalize_pieces(pieces: list[Any], totals: list[int]) -> list[Any]:
    """
    Normalise several batches, each over all ranks, with two reductions for all of them.

    :param pieces: shape (batch,) each, as many on every rank; empty ones count for nothing
    :param totals: how many entries each has on all ranks together
    :return: the same shapes
    """
    values = th.cat([th.as_tensor(piece) for piece in pieces])
    sizes = [len(piece) for piece in pieces]
    piece_of = th.repeat_interleave(th.tensor(sizes)).to(values.device)

    def sums(x: th.Tensor) -> th.Tensor:
        return sum_(th.zeros(len(pieces), dtype=th.float64, device=x.device).index_add_(0, piece_of, x.double()))

    counts = th.tensor(totals, dtype=th.float64, device=values.device)
    centred = values - (sums(values) / counts)[piece_of]
    deviations = (sums(centred**2) / (counts - 1).clamp(min=1)).sqrt() + 1e-8
    normal = th.where(counts[piece_of] > 1, centred / deviations[piece_of], values.double()).to(values.dtype)
    parts = list(th.split(normal, sizes))
    return parts if isinstance(pieces[0], th.Tensor) else [part.numpy() for part in parts]


class SharedGradient:
    """
    The mean of a gradient and of the terms of its loss over the minibatches of all ranks, with one all-reduce.

    :param gradient: where the engine leaves this rank's gradient and expects that of all; shape (n,)
    """

    def __init__(self, gradient: th.Tensor) -> None:
        self.alone = world_size() == 1
        self.gradient = gradient
        self.names: list[str] = []
        self.tensors = False

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
            self.names = [name for name in terms if not name.endswith("_max")]
            self.tensors = isinstance(terms[self.names[0]], th.Tensor)
        n, message = len(self.gradient), self.gradient.new_zeros(len(self.gradient) + len(self.names) + 1)
        if terms:
            values = [terms[name] for name in self.names]
            message[:n] = self.gradient
            message[n:-1] = th.stack(values) if self.tensors else th.tensor(values)
            message[-1] = 1
            message *= minibatch.size
        mean = sum_(message)
        mean = mean[:-1] / mean[-1]
        self.gradient.copy_(mean[:n])
        shared = mean[n:].unbind() if self.tensors else mean[n:].tolist()
        return {**terms, **dict(zip(self.names, shared, strict=True))}


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
