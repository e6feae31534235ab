"""
Networks of linear layers in NumPy: the passes forward, tangent and backward, on views of flat vectors.

Write δx for a small change of x and x̄ for the derivative of a scalar with respect to x. The three passes through a layer are

    forward     z = x Wᵀ + b              h = φ(z)
    tangent     δz = x δWᵀ + δb + δx Wᵀ    δh = φ'(z) δz          (J v: how the output moves if the parameters move by v)
    backward    z̄ = φ'(z) h̄               W̄ = z̄ᵀ x, b̄ = Σ z̄, x̄ = z̄ W   (Jᵀ u: the gradient of what has the slope u)
"""

from typing import NamedTuple

import numpy as np

from sb3_policyopt.maths.arrays import NumpyArray, row_of_ones
from sb3_policyopt.models.networks.activations import Activation


class Layer(NamedTuple):
    """Views of one layer's entries in a flat vector; the leading axis counts the networks of a stack."""

    weight: NumpyArray
    """shape (networks, n_out, n_in)"""
    bias: NumpyArray
    """shape (networks, 1, n_out)"""


class TrunkPass(NamedTuple):
    """What a trunk's forward pass leaves, shape (networks, batch, units) each."""

    hidden: list[NumpyArray]
    """The input, and h of each layer."""
    slopes: list[NumpyArray]
    """φ'(z) of each layer; empty if it was not asked for."""


class Trunk:
    """
    The hidden layers of one network, or of two networks of equal shape, whose layers are then computed together.

    :param widths: number of inputs, then of the units of each hidden layer
    :param activation: φ
    :param starts: where each network's entries begin in the flat vector; for each layer its weight, then its bias
    """

    def __init__(self, widths: list[int], activation: Activation, starts: list[int]) -> None:
        self.widths = widths
        self.activation = activation
        self.starts = starts
        self._work: dict[tuple[str, int, int], NumpyArray] = {}

    @property
    def size(self) -> int:
        """Number of entries of one network."""
        return sum((n_in + 1) * n_out for n_in, n_out in zip(self.widths, self.widths[1:], strict=False))

    def layers(self, vector: NumpyArray) -> list[Layer]:
        """
        Views of the networks' layers in a vector of parameters, gradients or tangents.

        :param vector: float32, one-dimensional and contiguous
        :return: one entry a layer
        """
        stride = (self.starts[-1] - self.starts[0]) * vector.itemsize
        start, result = self.starts[0], []
        for n_in, n_out in zip(self.widths, self.widths[1:], strict=False):
            result.append(
                Layer(
                    self._stacked(vector[start:], (n_out, n_in), stride),
                    self._stacked(vector[start + n_out * n_in :], (1, n_out), stride),
                )
            )
            start += n_out * (n_in + 1)
        return result

    def _stacked(self, vector: NumpyArray, shape: tuple[int, int], stride: int) -> NumpyArray:
        itemsize = vector.itemsize
        return np.lib.stride_tricks.as_strided(vector, (len(self.starts), *shape), (stride, shape[1] * itemsize, itemsize))

    def work(self, name: str, layer: int, batch: int) -> NumpyArray:
        """
        A work array that is the same one whenever it is asked for, so that no minibatch allocates memory.

        :param name: what it is for
        :param layer: number of the layer
        :param batch: number of samples
        :return: float32, shape (networks, batch, units of the layer); with whatever it held before
        """
        key = (name, layer, batch)
        if key not in self._work:
            if len(self._work) > 200:
                self._work.clear()
            self._work[key] = np.empty((len(self.starts), batch, self.widths[layer]), np.float32)
        return self._work[key]

    def forward(self, layers: list[Layer], x: NumpyArray, with_slopes: bool = False) -> TrunkPass:
        """
        z = x Wᵀ + b, h = φ(z) through all layers.

        :param layers: of the parameters
        :param x: shape (networks, batch, n_in), or (1, batch, n_in) for the same input
        :param with_slopes: whether φ'(z) is wanted
        :return: h and φ'(z) of each layer; valid until the next call with the same batch size
        """
        batch = x.shape[1]
        hidden: list[NumpyArray] = [x]
        slopes: list[NumpyArray] = []
        for i, (weight, bias) in enumerate(layers, start=1):
            z = np.matmul(hidden[-1], weight.swapaxes(1, 2), out=self.work("hidden", i, batch))
            z += bias
            slope = self.work("slope", i, batch) if with_slopes else None
            self.activation(z, slope)
            hidden.append(z)
            if slope is not None:
                slopes.append(slope)
        return TrunkPass(hidden, slopes)

    def tangent(
        self,
        layers: list[Layer],
        hidden: list[NumpyArray],
        slopes: list[NumpyArray],
        direction: list[Layer],
        dx: NumpyArray | None = None,
    ) -> NumpyArray | None:
        """
        δz = x δWᵀ + δb + δx Wᵀ, δh = φ'(z) δz through all layers.

        :param layers: of the parameters
        :param hidden: from :meth:`forward`
        :param slopes: from :meth:`forward`
        :param direction: of the tangent v
        :param dx: how the input moves, shape (networks, batch, n_in); None if it does not
        :return: δh of the last layer, shape (networks, batch, n_out); without layers, ``dx``
        """
        moved = dx
        batch = hidden[0].shape[1]
        for i, (layer, along) in enumerate(zip(layers, direction, strict=True)):
            change = np.matmul(hidden[i], along.weight.swapaxes(1, 2), out=self.work("tangent", i + 1, batch))
            if moved is not None:
                change += np.matmul(moved, layer.weight.swapaxes(1, 2), out=self.work("scratch", i + 1, batch))
            change += along.bias
            change *= slopes[i]
            moved = change
        return moved

    def backward(
        self,
        layers: list[Layer],
        hidden: list[NumpyArray],
        slopes: list[NumpyArray],
        h_bar: NumpyArray,
        into: list[Layer],
        to_input: bool = False,
    ) -> NumpyArray:
        """
        z̄ = φ'(z) h̄, W̄ = z̄ᵀ x, b̄ = Σ z̄, x̄ = z̄ W through all layers, the last one first.

        :param layers: of the parameters
        :param hidden: from :meth:`forward`
        :param slopes: from :meth:`forward`
        :param h_bar: slope of the scalar with respect to the last h, shape (networks, batch, n_out); overwritten
        :param into: where W̄ and b̄ are written
        :param to_input: whether x̄ of the first layer is wanted
        :return: that x̄ if it is, shape (networks, batch, n_in); valid until the next call with the same batch size
        """
        ones = row_of_ones(h_bar.shape[1])[None]
        for i in reversed(range(len(layers))):
            h_bar *= slopes[i]  # now z̄
            np.matmul(h_bar.swapaxes(1, 2), hidden[i], out=into[i].weight)
            np.matmul(ones, h_bar, out=into[i].bias)
            if i > 0 or to_input:
                h_bar = np.matmul(h_bar, layers[i].weight, out=self.work("backward", i, h_bar.shape[1]))
        return h_bar

    def gradient_buffer(self, batch: int) -> NumpyArray:
        """
        The array in which to hand the last layer's h̄ to :meth:`backward`.

        :param batch: number of samples
        :return: float32, shape (networks, batch, units of the last layer)
        """
        return self.work("backward", len(self.widths) - 1, batch)


class Network:
    """
    A trunk of one network with its linear head.

    :param trunk: the hidden layers
    :param n_out: number of outputs of the head
    """

    def __init__(self, trunk: Trunk, n_out: int) -> None:
        self.trunk = trunk
        self.n_out = n_out
        self.head_start = trunk.starts[0] + trunk.size

    def head(self, vector: NumpyArray) -> Layer:
        """
        Views of the head in a vector of parameters, gradients or tangents.

        :param vector: float32, one-dimensional and contiguous
        :return: weight of shape (n_out, n_hidden), bias of shape (n_out,)
        """
        n_in = self.trunk.widths[-1]
        end = self.head_start + self.n_out * n_in
        return Layer(vector[self.head_start : end].reshape(self.n_out, n_in), vector[end : end + self.n_out])

    @property
    def end(self) -> int:
        """Where the entries after the network begin."""
        return self.head_start + self.n_out * (self.trunk.widths[-1] + 1)
