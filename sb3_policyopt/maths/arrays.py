"""One code for torch tensors and NumPy arrays: both libraries name the functions that the formulas need alike."""

from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch as th

Array: TypeAlias = "np.ndarray[Any, Any] | th.Tensor"
ArrayT = TypeVar("ArrayT", "np.ndarray[Any, Any]", th.Tensor)


def namespace(array: Array) -> Any:
    """
    The library to which an array belongs, as in the Python array API standard.

    :param array: a torch tensor or a NumPy array
    :return: the module ``torch`` or the module ``numpy``
    """
    return th if isinstance(array, th.Tensor) else np


def mean(array: ArrayT) -> Any:
    """
    The mean of a vector; NumPy's own ``mean`` takes several times as long on a minibatch.

    :param array: shape (n,)
    :return: a scalar
    """
    return array.mean() if isinstance(array, th.Tensor) else total(array) / len(array)


def fraction(condition: ArrayT) -> Any:
    """
    The share of a vector's entries that are true.

    :param condition: bool, shape (n,)
    :return: a scalar in [0, 1]
    """
    return condition.float().mean() if isinstance(condition, th.Tensor) else np.count_nonzero(condition) / len(condition)


def largest(array: ArrayT) -> Any:
    """
    The largest entry of a vector.

    :param array: shape (n,)
    :return: a scalar
    """
    return array.max() if isinstance(array, th.Tensor) else np.maximum.reduce(array)


def clip(array: ArrayT, low: float, high: float) -> ArrayT:
    """
    Entries held within bounds; NumPy's own ``clip`` spends most of its time on its arguments.

    :param array: any shape
    :param low: lower bound
    :param high: upper bound
    :return: the same shape
    """
    return array.clamp(low, high) if isinstance(array, th.Tensor) else np.minimum(np.maximum(array, low), high)


def total(array: ArrayT) -> Any:
    """
    The sum of a vector, without the detour of NumPy's ``sum``.

    :param array: shape (n,)
    :return: a scalar
    """
    return array.sum() if isinstance(array, th.Tensor) else np.add.reduce(array)


def row_sums(array: ArrayT) -> ArrayT:
    """
    Sums along the last axis of a matrix, without the detour of NumPy's ``sum``.

    :param array: shape (batch, n)
    :return: shape (batch,)
    """
    return array.sum(1) if isinstance(array, th.Tensor) else np.add.reduce(array, 1)


def log_sum_exp(array: ArrayT) -> ArrayT:
    """
    ln Σ e^x along the last axis of a matrix, without overflow.

    :param array: shape (batch, n)
    :return: shape (batch,)
    """
    return array.logsumexp(1) if isinstance(array, th.Tensor) else np.logaddexp.reduce(array, 1)


def indices(stop: int, like: Array) -> Any:
    """
    0 … stop − 1, of the kind of another array and on its device.

    :param stop: how many
    :param like: the other array
    :return: integers, shape (stop,)
    """
    return th.arange(stop, device=like.device) if isinstance(like, th.Tensor) else np.arange(stop)


def copy(array: ArrayT) -> ArrayT:
    """
    The same bits in storage of their own (``array + 0`` would turn a zero's minus sign into a plus).

    :param array: any shape
    :return: the same shape
    """
    return array.clone() if isinstance(array, th.Tensor) else array.copy()
