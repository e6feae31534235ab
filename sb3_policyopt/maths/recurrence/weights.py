"""
The weights of a recurrent layer as one product needs them.

Each layer computes blocks of pre-activations z_b = s_b (W_b h + U_b x + b_b). A cell names its blocks: which gate's rows of
weight_hh and of weight_ih they take, and s_b. The scale is ½ where the gate is a sigmoid, as σ(z) = ½ (1 + tanh(z / 2)): then
one tanh serves all gates. With the scaled weights s_b [W_b U_b b_b] of all blocks in one array, what precedes the tanh is one
product with [h x 1]. Parameters and directions are put into that form, and gradients come out of it, by the same table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple

from sb3_policyopt.maths.arrays import ArrayT, namespace


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


def pack(weights: Weights[ArrayT], blocks: Sequence[Block], out: ArrayT) -> ArrayT:
    """
    s_b [W_b U_b b_b] of all blocks; a side on which a block does not depend is zero.

    :param weights: parameters or a direction
    :param blocks: of the cell
    :param out: where it is written, shape (blocks, hidden, hidden + n_in + 1)
    :return: ``out``
    """
    multiply = namespace(out).multiply
    hidden = weights.weight_hh.shape[1]
    for block, matrix in zip(blocks, out, strict=True):
        by_h, by_x, bias = matrix[:, :hidden], matrix[:, hidden:-1], matrix[:, -1]
        if block.hidden is None:
            by_h[...] = 0
        else:
            rows = slice(block.hidden * hidden, (block.hidden + 1) * hidden)
            multiply(weights.weight_hh[rows], block.scale, out=by_h)
            multiply(weights.bias_hh[rows], block.scale, out=bias)
        if block.input is None:
            by_x[...] = 0
        else:
            rows = slice(block.input * hidden, (block.input + 1) * hidden)
            multiply(weights.weight_ih[rows], block.scale, out=by_x)
            if block.hidden is None:
                multiply(weights.bias_ih[rows], block.scale, out=bias)
            else:
                bias += block.scale * weights.bias_ih[rows]
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
