"""
Networks of linear layers: the passes forward, tangent and backward, on views of flat vectors, in NumPy and in torch without
a graph.

Write δx for a small change of x and x̄ for the derivative of a scalar with respect to x. The three passes through a layer are

    forward     z = x Wᵀ + b              h = φ(z)
    tangent     δz = x δWᵀ + δb + δx Wᵀ    δh = φ'(z) δz          (J v: how the output moves if the parameters move by v)
    backward    z̄ = φ'(z) h̄               W̄ = z̄ᵀ x, b̄ = Σ z̄, x̄ = z̄ W   (Jᵀ u: the gradient of what has the slope u)
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Generic

from sb3_policyopt.maths.arrays import ArrayT, add_stacked_product, affine, column_sums, empty, stacked_product, strided
from sb3_policyopt.models.networks.activations import Activation

MOST_ARRAYS, MOST_SIZES, MOST_ENTRIES = 200, 4, 2**24
"""
Of a trunk's work arrays, before those of other numbers of samples are forgotten: how many there are; or for how many numbers
of samples, if they take more than 64 MiB. Acting, a minibatch, a smaller last one and the whole rollout are four.
"""


@dataclass(slots=True)
class Layer(Generic[ArrayT]):
    """Views of one layer's entries in a flat vector; the leading axis counts the networks of a stack."""

    weight: ArrayT
    """shape (networks, n_out, n_in)"""
    bias: ArrayT
    """shape (networks, 1, n_out)"""


@dataclass(slots=True)
class TrunkPass(Generic[ArrayT]):
    """What a trunk's forward pass leaves, shape (networks, batch, units) each."""

    hidden: list[ArrayT]
    """The input, and h of each layer."""
    slopes: list[ArrayT]
    """φ'(z) of each layer; empty if it was not asked for."""


class Trunk(Generic[ArrayT]):
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
        self.keeps_work = False
        self._work: dict[tuple[str, int, int], ArrayT] = {}

    @property
    def size(self) -> int:
        """Number of entries of one network."""
        return sum((n_in + 1) * n_out for n_in, n_out in pairwise(self.widths))

    def layers(self, vector: ArrayT) -> list[Layer[ArrayT]]:
        """
        Views of the networks' layers in a vector of parameters, gradients or tangents.

        :param vector: float32, one-dimensional and contiguous
        :return: one entry a layer
        """
        networks, stride = len(self.starts), self.starts[-1] - self.starts[0]
        start, result = self.starts[0], []
        for n_in, n_out in pairwise(self.widths):
            bias = start + n_out * n_in
            result.append(
                Layer(
                    strided(vector, start, (networks, n_out, n_in), (stride, n_in, 1)),
                    strided(vector, bias, (networks, 1, n_out), (stride, n_out, 1)),
                )
            )
            start = bias + n_out
        return result

    def work(self, name: str, layer: int, batch: int, like: ArrayT) -> ArrayT:
        """
        A work array that is the same one whenever it is asked for, so that no minibatch allocates memory.

        :param name: what it is for
        :param layer: number of the layer
        :param batch: number of samples
        :param like: gives library, dtype and device, the same at every call
        :return: shape (networks, batch, units of the layer); with whatever it held before
        """
        key = (name, layer, batch)
        if key not in self._work:
            if not self.keeps_work and self._is_crowded(batch):
                self._work.clear()
            self._work[key] = empty(like, len(self.starts), batch, self.widths[layer])
        return self._work[key]

    def _is_crowded(self, batch: int) -> bool:
        """
        Whether work arrays of other numbers of samples should go: numbers that vary would leave more and more of them.

        :param batch: a number of samples for which an array is missing
        :return: True if there are many arrays or large ones, and none yet for this number
        """
        sizes = {size for _, _, size in self._work}
        if batch in sizes:
            return False
        entries = sum(len(self.starts) * size * self.widths[layer] for _, layer, size in self._work)
        return len(self._work) > MOST_ARRAYS or (len(sizes) >= MOST_SIZES and entries > MOST_ENTRIES)

    def forward(self, layers: list[Layer[ArrayT]], x: ArrayT, with_slopes: bool = False) -> TrunkPass[ArrayT]:
        """
        z = x Wᵀ + b, h = φ(z) through all layers.

        :param layers: of the parameters
        :param x: shape (networks, batch, n_in), or (1, batch, n_in) for the same input
        :param with_slopes: whether φ'(z) is wanted
        :return: h and φ'(z) of each layer; valid until the next call with the same batch size
        """
        batch = x.shape[1]
        hidden: list[ArrayT] = [x]
        slopes: list[ArrayT] = []
        for i, layer in enumerate(layers, start=1):
            z = affine(hidden[-1], layer.weight, layer.bias, out=self.work("hidden", i, batch, x))
            slope = self.work("slope", i, batch, x) if with_slopes else None
            self.activation(z, slope)
            hidden.append(z)
            if slope is not None:
                slopes.append(slope)
        return TrunkPass(hidden, slopes)

    def tangent(
        self,
        layers: list[Layer[ArrayT]],
        hidden: list[ArrayT],
        slopes: list[ArrayT],
        direction: list[Layer[ArrayT]],
        dx: ArrayT | None = None,
    ) -> ArrayT | None:
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
            weight = along.weight.swapaxes(1, 2)
            change = stacked_product(hidden[i], weight, out=self.work("tangent", i + 1, batch, hidden[0]))
            if moved is not None:
                scratch = partial(self.work, "scratch", i + 1, batch, hidden[0])
                add_stacked_product(change, moved, layer.weight.swapaxes(1, 2), scratch)
            change += along.bias
            change *= slopes[i]
            moved = change
        return moved

    def backward(
        self,
        layers: list[Layer[ArrayT]],
        hidden: list[ArrayT],
        slopes: list[ArrayT],
        h_bar: ArrayT,
        into: list[Layer[ArrayT]],
        to_input: bool = False,
    ) -> ArrayT:
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
        for i in reversed(range(len(layers))):
            h_bar *= slopes[i]  # now z̄
            stacked_product(h_bar.swapaxes(1, 2), hidden[i], out=into[i].weight)
            column_sums(h_bar, out=into[i].bias)
            if i > 0 or to_input:
                h_bar = stacked_product(h_bar, layers[i].weight, out=self.work("backward", i, h_bar.shape[1], h_bar))
        return h_bar

    def gradient_buffer(self, batch: int, like: ArrayT) -> ArrayT:
        """
        The array in which to hand the last layer's h̄ to :meth:`backward`.

        :param batch: number of samples
        :param like: gives library, dtype and device
        :return: shape (networks, batch, units of the last layer)
        """
        return self.work("backward", len(self.widths) - 1, batch, like)


class Network(Generic[ArrayT]):
    """
    A trunk of one network with its linear head.

    :param trunk: the hidden layers
    :param n_out: number of outputs of the head
    """

    def __init__(self, trunk: Trunk[ArrayT], n_out: int) -> None:
        self.trunk: Trunk[ArrayT] = trunk
        self.n_out = n_out
        self.head_start = trunk.starts[0] + trunk.size

    def head(self, vector: ArrayT) -> Layer[ArrayT]:
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
