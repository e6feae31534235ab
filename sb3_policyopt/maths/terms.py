"""What is logged of an update: scalars of each minibatch, each with its own reduction over the update."""

from typing import NamedTuple, TypeAlias

import numpy as np
import torch as th

from sb3_policyopt.maths.arrays import NumpyArray, Scalar


class Maximum(NamedTuple):
    """
    A term of which the largest value of an update is logged.

    :param value: of one minibatch
    """

    value: Scalar


class Count(NamedTuple):
    """
    A term of which the sum over an update is logged.

    :param value: of one minibatch
    """

    value: Scalar


Term: TypeAlias = Scalar | Maximum | Count
"""A scalar of one minibatch. A plain number is reduced to its mean over the minibatches."""

Terms: TypeAlias = dict[str, Term]
"""Terms of one minibatch, by the name under which their reduction is logged."""


def value_of(term: Term) -> Scalar:
    """
    The number of a term.

    :param term: with or without a reduction of its own
    :return: the scalar
    """
    return term.value if isinstance(term, (Maximum, Count)) else term


def detached(terms: Terms) -> Terms:
    """
    Terms without the graph that they were computed with, which would live until the update's end.

    :param terms: of one minibatch
    :return: the same numbers
    """
    return {name: _detached(term) for name, term in terms.items()}


def _detached(term: Term) -> Term:
    value = value_of(term)
    if not (isinstance(value, th.Tensor) and value.requires_grad):
        return term
    return type(term)(value.detach()) if isinstance(term, (Maximum, Count)) else value.detach()


def accumulate(total: Terms, terms: Terms, share: float) -> None:
    """
    Add the terms of a piece to those of its batch.

    :param total: changed in place
    :param terms: of one piece
    :param share: the piece's share of the batch, by which a mean counts
    """
    for name, term in terms.items():
        total[name] = term if share == 1 else _combined(total.get(name), term, share)


def _combined(before: Term | None, term: Term, share: float) -> Term:
    """
    A term of the pieces so far, and of one more.

    :param before: of the pieces so far, None if this is the first
    :param term: of one more
    :param share: its share of the batch
    :return: of all of them
    """
    value = _as_tensor(value_of(term))
    if not isinstance(term, (Maximum, Count)):
        value = share * value
    if before is None:
        return term if isinstance(term, (Maximum, Count)) else value
    so_far = _as_tensor(value_of(before))
    if isinstance(term, Maximum):
        return Maximum(th.maximum(so_far, value))
    return Count(so_far + value) if isinstance(term, Count) else so_far + value


def _as_tensor(value: Scalar) -> th.Tensor:
    """
    A scalar as a tensor, whatever torch's default type is.

    :param value: a number of Python, NumPy or torch
    :return: without axes, float32 for a number of Python
    """
    return th.as_tensor(value, dtype=th.float32 if type(value) is float else None)


class Means:
    """
    Collects the terms of minibatches without waiting for the device; reduces them once, at the end.

    The terms of minibatches count equally, as in SB3. A term that is not finite belongs to a skipped minibatch and is left
    out, except of a :class:`Count`.
    """

    def __init__(self) -> None:
        self._rows: list[Terms] = []

    def add(self, terms: Terms) -> None:
        """
        Note the terms of one minibatch.

        :param terms: by name
        """
        self._rows.append(terms)

    def extend(self, other: "Means") -> None:
        """
        Note everything that another collection holds.

        :param other: of further minibatches
        """
        self._rows += other._rows

    def of(self, name: str) -> list[Scalar]:
        """
        One term of all minibatches.

        :param name: of the term
        :return: its values as they were added
        """
        return [value_of(row[name]) for row in self._rows if name in row]

    def reduced(self, name: str) -> float:
        """
        One term, reduced.

        :param name: of the term
        :return: its mean, largest value or sum; NaN if no minibatch had a finite one
        """
        kind = next(type(row[name]) for row in self._rows if name in row)
        array = as_array(self.of(name))
        if kind is Count:
            return float(array.sum())
        array = array[np.isfinite(array)]
        if not len(array):
            return float("nan")
        return float(array.max() if kind is Maximum else array.mean())

    def reduce(self) -> Terms:
        """
        All terms, reduced.

        :return: floats by name, a largest value as a :class:`Maximum`; empty if nothing was added
        """
        reduced: Terms = {}
        for row in self._rows:
            for name, term in row.items():
                if name not in reduced:
                    value = self.reduced(name)
                    reduced[name] = Maximum(value) if isinstance(term, Maximum) else value
        return reduced


def as_array(values: list[Scalar]) -> NumpyArray:
    """
    Scalars as one array, with one wait for their device.

    :param values: floats, or scalar tensors of one device
    :return: float64, shape (len(values),)
    """
    tensors = [value for value in values if isinstance(value, th.Tensor)]
    if len(tensors) == len(values) > 0:
        return th.stack(tensors).double().cpu().numpy()
    return np.array([float(value) for value in values])


def mean_terms(steps: list[Terms]) -> Terms:
    """
    The terms of an update that consists of several steps of the policy.

    :param steps: the terms of each step, usually of one
    :return: those of the one, or their means
    """
    if len(steps) == 1:
        return steps[0]
    means = Means()
    for terms in steps:
        means.add(terms)
    return means.reduce()
