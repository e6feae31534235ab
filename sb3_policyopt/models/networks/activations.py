"""Activation functions φ with their slopes φ', in place in NumPy."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from torch import nn

from sb3_policyopt.maths.arrays import NumpyArray

Activation: TypeAlias = Callable[[NumpyArray, NumpyArray | None], None]
"""(z, slope): overwrites z with φ(z) and, unless it is None, slope with φ'(z)."""


def tanh(z: NumpyArray, slope: NumpyArray | None) -> None:
    """φ' = 1 − φ²."""
    np.tanh(z, out=z)
    if slope is not None:
        np.square(z, out=slope)
        np.subtract(1, slope, out=slope)


def relu(z: NumpyArray, slope: NumpyArray | None) -> None:
    """φ' = [z > 0]."""
    if slope is not None:
        np.greater(z, 0, out=slope, casting="unsafe")
    np.maximum(z, 0, out=z)


def sigmoid(z: NumpyArray, slope: NumpyArray | None) -> None:
    """φ' = φ (1 − φ)."""
    z *= 0.5
    np.tanh(z, out=z)  # σ(z) = ½ + ½ tanh(z/2) cannot overflow
    z *= 0.5
    z += 0.5
    if slope is not None:
        np.subtract(1, z, out=slope)
        slope *= z


def silu(z: NumpyArray, slope: NumpyArray | None) -> None:
    """φ = z σ(z), φ' = σ(z) + φ (1 − σ(z))."""
    gate = z.copy()
    sigmoid(gate, None)
    z *= gate
    if slope is not None:
        np.subtract(1, gate, out=slope)
        slope *= z
        slope += gate


def identity(z: NumpyArray, slope: NumpyArray | None) -> None:
    """φ' = 1."""
    if slope is not None:
        slope.fill(1)


def leaky_relu(negative_slope: float) -> Activation:
    """
    φ = z for z > 0, else ``negative_slope`` · z.

    :param negative_slope: φ' for z ≤ 0
    :return: the activation
    """

    def activation(z: NumpyArray, slope: NumpyArray | None) -> None:
        factor = np.where(z > 0, np.float32(1), np.float32(negative_slope))
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

    def activation(z: NumpyArray, slope: NumpyArray | None) -> None:
        negative = np.float32(alpha) * np.expm1(np.minimum(z, 0))
        positive = z > 0
        if slope is not None:
            slope[...] = np.where(positive, np.float32(1), negative + np.float32(alpha))
        z[...] = np.where(positive, z, negative)

    return activation


def softplus(z: NumpyArray, slope: NumpyArray | None) -> None:
    """φ = ln(1 + e^z), φ' = σ(z)."""
    if slope is not None:
        slope[...] = z
        sigmoid(slope, None)
    np.logaddexp(z, np.float32(0), out=z)


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


def constants_of_activation(module: nn.Module) -> tuple[object, ...]:
    """
    What distinguishes two activations.

    :param module: an activation module
    :return: its type, and the numbers that it computes with
    """
    names = {nn.LeakyReLU: ("negative_slope",), nn.ELU: ("alpha",), nn.Softplus: ("beta", "threshold")}.get(type(module), ())
    return (type(module), *(getattr(module, name) for name in names))
