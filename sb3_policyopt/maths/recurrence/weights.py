"""
The weights of a recurrent layer as one product needs them.

Each layer computes blocks of pre-activations z_b = s_b (W_b h + U_b x + b_b). A cell names its blocks: which gate's rows of
weight_hh and of weight_ih they take, and s_b. The scale is ½ where the gate is a sigmoid, as σ(z) = ½ (1 + tanh(z / 2)): then
one tanh serves all gates. With the scaled weights s_b [W_b U_b b_b] of all blocks in one array, what precedes the tanh is one
product with [h x 1]. Parameters and directions are put into that form, and gradients come out of it, by the same table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, cast

import numpy as np

from sb3_policyopt.maths.arrays import ArrayT, NumpyArray, namespace


@dataclass(frozen=True)
class Weights(Generic[ArrayT]):
    """Views of one layer's entries in a flat vector, with torch's names and order of gates."""

    weight_ih: ArrayT
    """shape (gates · hidden, n_in)"""
    weight_hh: ArrayT
    """shape (gates · hidden, hidden)"""
    bias_ih: ArrayT
    """shape (gates · hidden,)"""
    bias_hh: ArrayT
    """shape (gates · hidden,)"""


class Block(NamedTuple):
    """Where a block of pre-activations has its weights."""

    hidden: int | None
    """Number of the gate in weight_hh and bias_hh; None if the block does not depend on h."""
    input: int | None
    """Number of the gate in weight_ih and bias_ih; None if the block does not depend on x."""
    scale: float
    """s_b."""


def empty(like: ArrayT, *shape: int) -> ArrayT:
    """
    An array that holds anything.

    :param like: gives library, dtype and device
    :param shape: of the array
    :return: the array
    """
    return np.empty(shape, like.dtype) if isinstance(like, np.ndarray) else like.new_empty(shape)


def one_minus(array: ArrayT, out: ArrayT) -> ArrayT:
    """
    1 − x.

    :param array: x, any shape
    :param out: where it is written
    :return: ``out``
    """
    namespace(array).negative(array, out=out)
    out += 1
    return out


def transposed(stack: ArrayT) -> ArrayT:
    """
    The matrices of a stack transposed, in new memory: NumPy's products of few rows take several times as long on a view.

    :param stack: shape (blocks, n, m)
    :return: shape (blocks, m, n), contiguous
    """
    if isinstance(stack, np.ndarray):
        return cast(NumpyArray, stack.swapaxes(1, 2).copy())
    return stack.swapaxes(1, 2).contiguous()


def pack(weights: Weights[ArrayT], blocks: Sequence[Block], out: ArrayT | None = None) -> ArrayT:
    """
    s_b [W_b U_b b_b] of all blocks.

    :param weights: parameters or a direction
    :param blocks: of the cell
    :param out: where to write, from an earlier call; entries that belong to no gate are not written again
    :return: shape (blocks, hidden, hidden + n_in + 1)
    """
    xp = namespace(weights.weight_ih)
    hidden, n_in = weights.weight_hh.shape[1], weights.weight_ih.shape[1]
    if out is None:
        out = empty(weights.weight_ih, len(blocks), hidden, hidden + n_in + 1)
        out[...] = 0
    for block, matrix in zip(blocks, out, strict=True):
        bias = matrix[:, -1]
        sides = ((block.hidden, weights.bias_hh), (block.input, weights.bias_ih))
        first, *second = [vector[gate * hidden :][:hidden] for gate, vector in sides if gate is not None]
        xp.multiply(first, block.scale, out=bias)
        for vector in second:
            bias += block.scale * vector
        if block.hidden is not None:
            xp.multiply(weights.weight_hh[block.hidden * hidden :][:hidden], block.scale, out=matrix[:, :hidden])
        if block.input is not None:
            xp.multiply(weights.weight_ih[block.input * hidden :][:hidden], block.scale, out=matrix[:, hidden:-1])
    return out


def unpack(gradient: ArrayT, blocks: Sequence[Block], into: Weights[ArrayT]) -> None:
    """
    The gradient with respect to the weights from that with respect to their packed form: the transpose of :func:`pack`.

    :param gradient: shape (blocks, hidden, hidden + n_in + 1)
    :param blocks: of the cell
    :param into: where the gradient is written; every entry is
    """
    xp = namespace(gradient)
    hidden = gradient.shape[1]
    for block, matrix in zip(blocks, gradient, strict=True):
        if block.hidden is not None:
            rows = slice(block.hidden * hidden, (block.hidden + 1) * hidden)
            xp.multiply(matrix[:, :hidden], block.scale, out=into.weight_hh[rows])
            xp.multiply(matrix[:, -1], block.scale, out=into.bias_hh[rows])
        if block.input is not None:
            rows = slice(block.input * hidden, (block.input + 1) * hidden)
            xp.multiply(matrix[:, hidden:-1], block.scale, out=into.weight_ih[rows])
            xp.multiply(matrix[:, -1], block.scale, out=into.bias_ih[rows])
