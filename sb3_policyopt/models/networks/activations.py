"""Activation functions φ with their slopes φ', in place, in NumPy and in torch."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch as th
from torch import nn

from sb3_policyopt.maths.arrays import ArrayT, constant, copy, namespace, tanh_in_place

Activation: TypeAlias = Callable[[Any, Any], None]
"""(z, slope): overwrites z with φ(z) and, unless it is None, slope with φ'(z); both of one library."""


def tanh(z: ArrayT, slope: ArrayT | None) -> None:
    """φ' = 1 − φ²."""
    xp = namespace(z)
    tanh_in_place(z)
    if slope is not None:
        xp.square(z, out=slope)
        xp.subtract(constant(1, z), slope, out=slope)


def relu(z: ArrayT, slope: ArrayT | None) -> None:
    """φ' = [z > 0]."""
    if slope is not None:
        _positive(z, slope)
    namespace(z).maximum(z, constant(0, z), out=z)


def _positive(z: ArrayT, into: ArrayT) -> None:
    """[z > 0] as 0 and 1."""
    if isinstance(z, np.ndarray):
        np.greater(z, 0, out=into, casting="unsafe")
    else:
        th.gt(z, 0, out=into)


def sigmoid(z: ArrayT, slope: ArrayT | None) -> None:
    """φ' = φ (1 − φ)."""
    z *= 0.5
    tanh_in_place(z)  # σ(z) = ½ + ½ tanh(z/2) cannot overflow
    z *= 0.5
    z += 0.5
    if slope is not None:
        namespace(z).subtract(constant(1, z), z, out=slope)
        slope *= z


def silu(z: ArrayT, slope: ArrayT | None) -> None:
    """φ = z σ(z), φ' = σ(z) + φ (1 − σ(z))."""
    gate = copy(z)
    sigmoid(gate, None)
    z *= gate
    if slope is not None:
        namespace(z).subtract(constant(1, z), gate, out=slope)
        slope *= z
        slope += gate


def identity(z: ArrayT, slope: ArrayT | None) -> None:
    """φ' = 1."""
    if slope is not None:
        slope[...] = 1


def leaky_relu(negative_slope: float) -> Activation:
    """
    φ = z for z > 0, else ``negative_slope`` · z.

    :param negative_slope: φ' for z ≤ 0
    :return: the activation
    """

    def activation(z: ArrayT, slope: ArrayT | None) -> None:
        factor = namespace(z).where(z > 0, constant(1, z), constant(negative_slope, z))
        if slope is not None:
            slope[...] = factor
        z *= factor

    return activation


def elu(alpha: float) -> Activation:
    """
    φ = z for z > 0, else α (e^z − 1); φ' = 1, else φ + α.

    :param alpha: α
    :return: the activation
    """

    def activation(z: ArrayT, slope: ArrayT | None) -> None:
        xp, scale = namespace(z), constant(alpha, z)
        negative = scale * xp.expm1(xp.minimum(z, constant(0, z)))
        positive = z > 0
        if slope is not None:
            slope[...] = xp.where(positive, constant(1, z), negative + scale)
        z[...] = xp.where(positive, z, negative)

    return activation


def softplus(z: ArrayT, slope: ArrayT | None) -> None:
    """φ = ln(1 + e^z), φ' = σ(z)."""
    if slope is not None:
        slope[...] = z
        sigmoid(slope, None)
    namespace(z).logaddexp(z, constant(0, z), out=z)


def make_activation(module: nn.Module | None) -> Activation | None:
    """
    The activation that a torch module computes.

    :param module: an activation module; None stands for no hidden layer
    :return: None if it is not among those written here
    """
    plain = {nn.Tanh: tanh, nn.ReLU: relu, nn.Sigmoid: sigmoid, nn.SiLU: silu, nn.Identity: identity}
    if type(module) in plain:
        return plain[type(module)]
    if type(module) is nn.LeakyReLU:
        return leaky_relu(module.negative_slope)
    if type(module) is nn.ELU:
        return elu(module.alpha)
    if type(module) is nn.Softplus and (module.beta, module.threshold) == (1, 20):  # e^-20 is below float32's resolution
        return softplus
    return None


CONSTANTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.LeakyReLU: ("negative_slope",),
    nn.ELU: ("alpha",),
    nn.Softplus: ("beta", "threshold"),
}
"""The numbers that an activation computes with, by its type; others have none."""


def constants_of_activation(module: nn.Module) -> tuple[object, ...]:
    """
    What distinguishes two activations.

    :param module: an activation module
    :return: its type, and the numbers that it computes with
    """
    return (type(module), *(getattr(module, name) for name in CONSTANTS.get(type(module), ())))
