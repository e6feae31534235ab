"""What is logged of an update: the mean of each term over all its minibatches."""

from typing import Any

import numpy as np
import torch as th

from sb3_policyopt.engines.engine import Terms


class Means:
    """
    Collects the terms of minibatches without waiting for the device; reduces them once, at the end.

    The terms of minibatches count equally, as in SB3; terms whose names end in ``_max`` are reduced to the largest.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}

    def add(self, terms: Terms) -> None:
        """
        Note the terms of one minibatch.

        :param terms: scalars (floats or tensors) by name
        """
        for name, value in terms.items():
            self._values.setdefault(name, []).append(value)

    def extend(self, other: "Means") -> None:
        """
        Note everything that another collection holds.

        :param other: of further minibatches
        """
        for name, values in other._values.items():
            self._values.setdefault(name, []).extend(values)

    def reduce(self) -> dict[str, float]:
        """
        Means (or maxima) over the minibatches.

        :return: floats by name; empty if nothing was added
        """
        result = {}
        for name, values in self._values.items():
            array = th.stack(values).double().cpu().numpy() if isinstance(values[0], th.Tensor) else np.array(values)
            result[name] = float(array.max() if name.endswith("_max") else array.mean())
        return result
