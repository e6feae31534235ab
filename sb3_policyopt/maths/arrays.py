"""One code for torch tensors and NumPy arrays: both libraries name the functions that the formulas need alike."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import torch as th

NumpyArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""Of any shape and type."""
Array: TypeAlias = NumpyArray | th.Tensor
ArrayT = TypeVar("ArrayT", NumpyArray, th.Tensor)
"""One of the two libraries throughout a function."""
Scalar: TypeAlias = float | np.floating[Any] | th.Tensor
"""A number, or a tensor without axes."""


FEW = 1024
"""Entries up to which what counts is the number of calls to NumPy: there sums are products with ones, in their order."""


FEW_THREADS = 6
"""Threads up to which NumPy's tanh is faster than torch's."""


@lru_cache(maxsize=16)
def row_of_ones(n: int, dtype: "np.dtype[Any] | type" = np.float32) -> NumpyArray:
    """
    Ones, with which a product sums a vector, or the columns of a matrix, faster than NumPy's sum.

    :param n: how many
    :param dtype: of NumPy
    :return: shape (n,), not to be written to
    """
    return np.ones(n, dtype)


@lru_cache(maxsize=64)
def _numpy_constant(number: float) -> NumpyArray:
    return np.asarray(number, np.float32)


@cache  # a graph may read it, so it must never be freed
def _torch_constant(number: float, dtype: th.dtype, device: th.device) -> th.Tensor:
    return th.tensor(number, dtype=dtype, device=device)


def constant(number: float, like: ArrayT) -> ArrayT:
    """
    A number where a function needs an array of its library, made once for each device.

    :param number: its value
    :param like: an array with which it will be combined
    :return: shape (), not to be written to; float32 beside arrays of NumPy
    """
    if isinstance(like, np.ndarray):
        return _numpy_constant(number)
    return _torch_constant(number, like.dtype, like.device)


def namespace(array: Array) -> Any:
    """
    The library to which an array belongs, as in the Python array API standard.

    :param array: a torch tensor or a NumPy array
    :return: the module ``torch`` or the module ``numpy``, whose functions have different types
    """
    return np if isinstance(array, np.ndarray) else th


@overload
def mean(array: NumpyArray) -> float: ...


@overload
def mean(array: th.Tensor) -> th.Tensor: ...


def mean(array: Array) -> Scalar:
    """
    The mean of a vector; NumPy's own ``mean`` takes several times as long on a minibatch.

    :param array: shape (n,)
    :return: a scalar
    """
    return total(array) / len(array) if isinstance(array, np.ndarray) else array.mean()


def fraction(condition: Array) -> Scalar:
    """
    The share of a vector's entries that are true.

    :param condition: bool, shape (n,)
    :return: a scalar in [0, 1]
    """
    return np.count_nonzero(condition) / len(condition) if isinstance(condition, np.ndarray) else condition.float().mean()


def largest(array: Array) -> Scalar:
    """
    The largest entry of a vector; finding its place takes NumPy a third of the time that ``max`` takes.

    :param array: shape (n,)
    :return: a scalar; NaN if there is one
    """
    return array[array.argmax()] if isinstance(array, np.ndarray) else array.max()


def clip(array: ArrayT, low: float | ArrayT, high: float | ArrayT) -> ArrayT:
    """
    Entries held within bounds; NumPy's own ``clip`` spends most of its time on its arguments.

    :param array: any shape
    :param low: lower bound, in torch also a tensor without axes
    :param high: upper bound
    :return: the same shape
    """
    if isinstance(array, np.ndarray):
        return np.minimum(np.maximum(array, low), high)
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        return array.clamp(low, high)
    return th.minimum(th.maximum(array, th.as_tensor(low)), th.as_tensor(high))  # clamp would wait for a tensor without axes


def raise_to(array: ArrayT, low: float) -> ArrayT:
    """
    Raise the entries below a bound to it, in place.

    :param array: any shape
    :param low: the bound
    :return: the array
    """
    if isinstance(array, np.ndarray):
        return np.maximum(array, low, out=array)
    return array.clamp_min_(low)


@overload
def total(array: NumpyArray) -> float: ...


@overload
def total(array: th.Tensor) -> th.Tensor: ...


def total(array: Array) -> Scalar:
    """
    The sum of a vector: of the few entries of a minibatch by a product with ones, in a third of the time of NumPy's
    ``sum``; of more by NumPy's sum of pairs, whose rounding error hardly grows with their number.

    :param array: shape (n,)
    :return: a scalar
    """
    if not isinstance(array, np.ndarray):
        return array.sum()
    return array.dot(row_of_ones(len(array), array.dtype)) if len(array) <= FEW else np.add.reduce(array)


def row_sums(array: ArrayT) -> ArrayT:
    """
    Sums along the last axis: as a product with ones, in half of the time of NumPy's ``sum``.

    :param array: of a floating dtype, shape (..., n)
    :return: shape (...,)
    """
    return array.dot(row_of_ones(array.shape[-1], array.dtype)) if isinstance(array, np.ndarray) else array.sum(-1)


def log_sum_exp(array: ArrayT) -> ArrayT:
    """
    ln Σ e^x along the last axis of a matrix, without overflow.

    A minibatch of few numbers takes one call; with more of them it pays to take the largest out and use NumPy's fast ``exp``.

    :param array: shape (batch, n)
    :return: shape (batch,)
    """
    if not isinstance(array, np.ndarray):
        return array.logsumexp(1)
    if array.size <= FEW:
        one_call: NumpyArray = np.logaddexp.reduce(array, 1)
        return one_call
    highest = np.maximum.reduce(array, 1)
    return np.log(row_sums(np.exp(array - highest[:, None]))) + highest


def column_sums(array: ArrayT, out: ArrayT) -> None:
    """
    Sums along the last axis but one; in NumPy as a product with ones, in half of the time of its ``sum``.

    :param array: float32 in NumPy, shape (..., batch, n)
    :param out: where they are written, shape (..., 1, n)
    """
    if isinstance(array, np.ndarray):
        np.matmul(row_of_ones(array.shape[-2])[None], array, out=out)
    else:
        th.sum(array, -2, keepdim=True, out=out)


def product(a: ArrayT, b: ArrayT, out: ArrayT | None = None) -> ArrayT:
    """
    The product of two matrices, or of a vector and a matrix.

    :param a: shape (n, k) or (k,)
    :param b: shape (k, m) or (k,)
    :param out: where it is written, None for new memory
    :return: shape (n, m), (m,) or (n,)
    """
    if isinstance(a, np.ndarray):
        result: NumpyArray = np.dot(a, b, out=out)
        return result
    if a.dim() == 1:
        return th.mv(b.T, a, out=out)
    return th.mv(a, b, out=out) if b.dim() == 1 else th.mm(a, b, out=out)


def stacked_product(a: ArrayT, b: ArrayT, out: ArrayT) -> ArrayT:
    """
    The products of the matrices of two stacks.

    :param a: shape (networks, n, k), or with 1 for networks
    :param b: shape (networks, k, m), or with 1 for networks
    :param out: where they are written, shape (networks, n, m)
    :return: ``out``
    """
    if isinstance(a, np.ndarray):
        result: NumpyArray = np.matmul(a, b, out=out)
        return result
    networks = len(out)
    return th.bmm(a.expand(networks, -1, -1), b.expand(networks, -1, -1), out=out)


def add_stacked_product(to: ArrayT, a: ArrayT, b: ArrayT, scratch: Callable[[], ArrayT]) -> None:
    """
    Add to matrices the products of the matrices of two stacks; one call in torch.

    :param to: changed in place, shape (networks, n, m)
    :param a: shape (networks, n, k)
    :param b: shape (networks, k, m)
    :param scratch: () ↦ an array of the shape of ``to``, which NumPy needs
    """
    if isinstance(to, np.ndarray):
        to += np.matmul(a, b, out=scratch())
    else:
        to.baddbmm_(a, b)


def tanh_in_place(array: ArrayT) -> None:
    """
    Overwrite x with tanh x. NumPy's takes a seventh of the time of one thread of torch, so it serves tensors on the CPU too
    where there are few threads.

    :param array: any shape, contiguous
    """
    if isinstance(array, np.ndarray):
        np.tanh(array, out=array)
    elif array.device.type == "cpu" and th.get_num_threads() <= FEW_THREADS:
        np.tanh(array.numpy(), out=array.numpy())
    else:
        th.tanh(array, out=array)


def affine(x: ArrayT, weight: ArrayT, bias: ArrayT, out: ArrayT) -> ArrayT:
    """
    x Wᵀ + b for the layers of a stack; one call in torch.

    :param x: shape (networks, batch, n_in), or with 1 for networks
    :param weight: shape (networks, n_out, n_in)
    :param bias: shape (networks, 1, n_out)
    :param out: where it is written, shape (networks, batch, n_out)
    :return: ``out``
    """
    if isinstance(x, np.ndarray):
        result: NumpyArray = np.matmul(x, weight.swapaxes(1, 2), out=out)
        result += bias
        return result
    return th.baddbmm(bias, x.expand(len(weight), -1, -1), weight.mT, out=out)


def indices(stop: int, like: ArrayT) -> ArrayT:
    """
    0 … stop − 1, of the kind of another array and on its device.

    :param stop: how many
    :param like: the other array
    :return: integers, shape (stop,)
    """
    return np.arange(stop) if isinstance(like, np.ndarray) else th.arange(stop, device=like.device)


def empty(like: ArrayT, *shape: int) -> ArrayT:
    """
    An array that holds anything.

    :param like: gives library, dtype and device
    :param shape: of the array
    :return: the array
    """
    return np.empty(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_empty(shape)


def strided(vector: ArrayT, start: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> ArrayT:
    """
    A view of a vector.

    :param vector: one-dimensional and contiguous
    :param start: its entry at which the view begins
    :param shape: of the view
    :param strides: of the view, in entries
    :return: the view
    """
    if isinstance(vector, np.ndarray):
        size = vector.itemsize
        return np.lib.stride_tricks.as_strided(vector[start:], shape, [size * stride for stride in strides])
    return vector.as_strided(shape, strides, vector.storage_offset() + start)


def copy(array: ArrayT) -> ArrayT:
    """
    The same bits in storage of their own (``array + 0`` would turn a zero's minus sign into a plus).

    :param array: any shape
    :return: the same shape
    """
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def softplus(x: ArrayT) -> ArrayT:
    """
    ln(1 + e^x), without overflow.

    :param x: any shape
    :return: the same shape
    """
    xp = namespace(x)
    return xp.logaddexp(x, xp.zeros_like(x))


def sigmoid(x: ArrayT) -> ArrayT:
    """
    σ(x) = 1 / (1 + e^−x), without overflow.

    :param x: any shape
    :return: the same shape
    """
    return 0.5 + 0.5 * namespace(x).tanh(0.5 * x)
