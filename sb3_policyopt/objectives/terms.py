"""What is logged of an update: the mean of each term over all its minibatches."""

from typing import Any

import numpy as np
import torch as th

from sb3_policyopt.models.model import Terms


class Means:
    """
    Collects the terms of minibatches without waiting for the device; reduces them once, at the end.

    The terms of minibatches count equally, as in SB3. Terms whose names end in ``_max`` are reduced to the largest,
    ``skipped_updates`` is a count. A term that is not finite belongs to a skipped minibatch and is left out.
    """

    def __init__(self) -> None:
        self._rows: list[Terms] = []

    def add(self, terms: Terms) -> None:
        """
        Note the terms of one minibatch.

        :param terms: scalars (floats or tensors) by name
        """
        self._rows.append(terms)

    def extend(self, other: "Means") -> None:
        """
        Note everything that another collection holds.

        :param other: of further minibatches
        """
        self._rows += other._rows

    def of(self, name: str) -> list[Any]:
        """
        One term of all minibatches.

        :param name: of the term
        :return: its values as they were added
        """
        return [row[name] for row in self._rows if name in row]

    def mean(self, name: str) -> float:
        """
        One term, reduced.

        :param name: of the term
        :return: its mean, largest value or sum; NaN if no minibatch had a finite one
        """
        values = self.of(name)
        array = th.stack(values).double().cpu().numpy() if isinstance(values[0], th.Tensor) else np.array(values, float)
        if name == "skipped_updates":
            return float(array.sum())
        array = array[np.isfinite(array)]
        if not len(array):
            return float("nan")
        return float(array.max() if name.endswith("_max") else array.mean())

    def reduce(self) -> dict[str, float]:
        """
        All terms, reduced.

        :return: floats by name; empty if nothing was added
        """
        return {name: self.mean(name) for name in dict.fromkeys(name for row in self._rows for name in row)}


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
