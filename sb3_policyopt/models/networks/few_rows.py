"""Actor and critic as one network, for the handful of rows of a step of the environments."""

from itertools import pairwise

import numpy as np

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.models.networks.activations import Activation
from sb3_policyopt.models.networks.layers import Layer

WORTH_JOINING = 2**17
"""Multiplications of a joined layer below which one product of twice the size is faster than two."""


class JoinedNetworks:
    """
    Two networks of equal depth side by side: they share the input, and the other layers' weights are block-diagonal.

    With few rows a product of matrices costs little more than its call, so that half as many calls are nearly twice as
    fast. The weights are copies, made anew whenever θ has changed.

    :param theta: the stretch of the parameters of which all layers are views
    :param actor: layers of the actor, head last; weights of shape (n_out, n_in)
    :param critic: layers of the critic, as many
    :param activation: φ
    """

    def __init__(
        self, theta: NumpyArray, actor: list[Layer[NumpyArray]], critic: list[Layer[NumpyArray]], activation: Activation
    ) -> None:
        self.theta = theta
        self.activation = activation
        self.parts = list(zip(actor, critic, strict=True))
        self.n_actor_outputs = len(actor[-1].weight)
        widths = [actor[0].weight.shape[1], *(len(a.weight) + len(c.weight) for a, c in self.parts)]
        self.weights = [np.zeros(shape, np.float32) for shape in pairwise(widths)]
        self.biases = [np.zeros(width, np.float32) for width in widths[1:]]
        self._bytes = theta.view(np.uint8).data
        self._copied = bytearray()

    @property
    def size(self) -> int:
        """Entries of the largest weight matrix."""
        return max(weight.size for weight in self.weights)

    def refresh(self) -> None:
        """Copy the parameters, if they have changed: an update did it, or a callback in the middle of a rollout."""
        if self._copied == self._bytes:  # a comparison of memory: no other test sees every change
            return
        self._copied[:] = self._bytes
        for i, (actor, critic) in enumerate(self.parts):
            n_out, n_in = actor.weight.shape
            weight, bias = self.weights[i], self.biases[i]
            weight[: n_in if i else None, :n_out] = actor.weight.T
            weight[n_in if i else None :, n_out:] = critic.weight.T
            bias[:n_out], bias[n_out:] = actor.bias, critic.bias

    def outputs(self, x: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
        """
        Forward pass of both.

        :param x: features, shape (batch, n_features)
        :return: the actor's output, shape (batch, n_actor_outputs); V, shape (batch,)
        """
        self.refresh()
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.dot(x, weight)
            x += bias
            self.activation(x, None)
        x = np.dot(x, self.weights[-1])
        x += self.biases[-1]
        return x[:, : self.n_actor_outputs], x[:, self.n_actor_outputs]
