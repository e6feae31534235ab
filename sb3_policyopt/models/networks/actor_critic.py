"""
Actor and critic above their features, by explicit formulas in NumPy on the memory of the torch parameters.

Everything that the objectives ask for is made of the networks' Jacobian J and its transpose, see :mod:`.layers`. Features are
arrays of shape (1, batch, n_features) if both networks have the same, (2, batch, n_features) if each has its own: the actor's
first, the critic's last.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_policyopt.distributions import ActionDistribution
from sb3_policyopt.distributions.masking import penalties
from sb3_policyopt.global_state import threads_for
from sb3_policyopt.maths.arrays import NumpyArray, row_of_ones, total
from sb3_policyopt.models.networks.activations import identity, make_activation
from sb3_policyopt.models.networks.layers import Layer, Network, Trunk, TrunkPass
from sb3_policyopt.models.networks.sb3_layout import activation_modules, linear_layers
from sb3_policyopt.objectives.outputs import Outputs, Slopes
from sb3_policyopt.optimisation.flat_parameters import FlatParameters


class ActorCriticNetworks:
    """
    The two multilayer perceptrons of an SB3 policy, with their heads and the action distribution's own parameters.

    :param policy: in which :func:`sb3_policyopt.models.choice.networks_obstacle` found no obstacle
    :param flat: the policy's parameters; the layers of each network lie in it one after the other, head last, and the
        distribution's own parameters after the actor's
    :param family: of the policy's action distribution
    """

    def __init__(self, policy: ActorCriticPolicy, flat: FlatParameters, family: ActionDistribution) -> None:
        actor_layers, critic_layers = linear_layers(policy)
        self.family = family
        self.theta: NumpyArray = flat.vector.numpy()
        self.gradient: NumpyArray = flat.gradient.numpy()
        self.starts = [flat.start_of(actor_layers[0].weight), flat.start_of(critic_layers[0].weight)]
        activations = activation_modules(policy)  # all with the same constants
        self.activation = (make_activation(activations[0]) if activations else None) or identity
        self._build(actor_layers, critic_layers)

    def _build(self, actor_layers: list[nn.Linear], critic_layers: list[nn.Linear]) -> None:
        """
        Lay the networks over the flat vector.

        :param actor_layers: hidden layers and head of the actor
        :param critic_layers: hidden layers and head of the critic
        """

        def network(layers: list[nn.Linear], start: int) -> Network:
            widths = [layer.in_features for layer in layers]
            return Network(Trunk(widths, self.activation, [start]), layers[-1].out_features)

        self.actor, self.critic = network(actor_layers, self.starts[0]), network(critic_layers, self.starts[1])
        self.n_actor = self.actor.end + len(self.family.free) * self.actor.n_out
        if self.actor.trunk.widths == self.critic.trunk.widths:
            self.trunks = [Trunk(self.actor.trunk.widths, self.activation, self.starts)]
        else:
            self.trunks = [self.actor.trunk, self.critic.trunk]
        self._largest_layer = max(layer.in_features * layer.out_features for layer in actor_layers + critic_layers)
        # The views of θ and of its gradient never change, as the vectors never move.
        self.layers = [trunk.layers(self.theta) for trunk in self.trunks]
        self.layer_gradients = [trunk.layers(self.gradient) for trunk in self.trunks]
        self.actor_layers, self.critic_layers = self.actor.trunk.layers(self.theta), self.critic.trunk.layers(self.theta)
        self.actor_head, self.critic_head = self.actor.head(self.theta), self.critic.head(self.theta)
        self.critic_layer_gradients = self.critic.trunk.layers(self.gradient)
        self.actor_head_gradient, self.critic_head_gradient = self.actor.head(self.gradient), self.critic.head(self.gradient)
        self.free, self.free_gradient = self.free_of(self.theta), self.free_of(self.gradient)

    def free_of(self, vector: NumpyArray) -> tuple[NumpyArray, ...]:
        """
        The entries of the distribution's own parameters, such as a Gaussian's log_std.

        :param vector: of parameters, gradients or tangents
        :return: views, shape (n,) each; none if the family has no such parameters
        """
        n, start = self.actor.n_out, self.actor.end
        return tuple([vector[start + i * n : start + (i + 1) * n] for i in range(len(self.family.free))])

    def threads(self, batch: int) -> AbstractContextManager[None]:
        """
        Threads that suit the networks' matrix products.

        :param batch: number of samples
        :return: a context
        """
        return threads_for(batch * self._largest_layer)

    # ------------------------------------------------------------------ forward

    def forward(
        self, features: NumpyArray, action_masks: NumpyArray | None = None, with_slopes: bool = True
    ) -> "NetworksPass":
        """
        Both networks.

        :param features: of the batch
        :param action_masks: which actions are allowed, bool, shape (batch, n); None for all
        :param with_slopes: whether the Jacobian will be asked for
        :return: their outputs, and what the way back needs
        """
        # One trunk of two networks gets all features, two trunks of one the first and the last.
        inputs = [features] if len(self.trunks) == 1 else [features[:1], features[-1:]]
        passes = [
            trunk.forward(layers, x, with_slopes) for trunk, layers, x in zip(self.trunks, self.layers, inputs, strict=True)
        ]
        # One trunk of two networks or two trunks of one: the actor is the first network of the first trunk,
        # the critic the last network of the last trunk.
        parameters = self.distribution_parameters(passes[0].hidden[-1][0], action_masks)
        outputs = Outputs(self.family, parameters, self.critic_values(passes[-1].hidden[-1][-1]))
        return NetworksPass(self, outputs, passes, len(features) == 1)

    def critic_forward(self, features: NumpyArray, with_slopes: bool = True) -> "CriticPass":
        """
        The critic alone.

        :param features: its own, shape (1, batch, n_features)
        :param with_slopes: whether the Jacobian will be asked for
        :return: V, and what the way back needs
        """
        trunk_pass = self.critic.trunk.forward(self.critic_layers, features, with_slopes)
        return CriticPass(self, Outputs(self.family, (), self.critic_values(trunk_pass.hidden[-1][-1])), trunk_pass)

    def actor_forward(
        self, features: NumpyArray, action_masks: NumpyArray | None = None, with_slopes: bool = True
    ) -> "ActorPass":
        """
        The actor alone.

        :param features: its own, shape (1, batch, n_features)
        :param action_masks: which actions are allowed, bool, shape (batch, n); None for all
        :param with_slopes: whether the Jacobian will be asked for
        :return: the distributions' parameters, and the Jacobian
        """
        trunk_pass = self.actor.trunk.forward(self.actor_layers, features, with_slopes)
        return ActorPass(self, self.distribution_parameters(trunk_pass.hidden[-1][0], action_masks), trunk_pass)

    def distribution_parameters(self, hidden: NumpyArray, action_masks: NumpyArray | None = None) -> tuple[NumpyArray, ...]:
        """
        The actor's head, and M1 where there are masks.

        :param hidden: the actor's last h, shape (batch, n_hidden)
        :param action_masks: which actions are allowed, bool, shape (batch, n); None for all
        :return: (mean, log_std) or (logits,)
        """
        output = np.dot(self.actor_head.weight, hidden.T).T  # columns lie together: NumPy sums such rows twice as fast
        output += self.actor_head.bias
        if action_masks is not None:
            output += penalties(action_masks)
        return (output, *self.free)

    def critic_values(self, hidden: NumpyArray) -> NumpyArray:
        """
        The critic's head.

        :param hidden: the critic's last h, shape (batch, n_hidden)
        :return: V, shape (batch,)
        """
        values: NumpyArray = hidden.dot(self.critic_head.weight[0])
        values += self.critic_head.bias
        return values

    # ------------------------------------------------------------------ backward through the heads

    def actor_head_backward(
        self,
        hidden: NumpyArray,
        slopes: tuple[NumpyArray, ...],
        into: Layer,
        free_into: tuple[NumpyArray, ...],
        h_bar: NumpyArray,
    ) -> None:
        """
        The backward pass of the actor's head.

        :param hidden: the actor's last h, shape (batch, n_hidden)
        :param slopes: with respect to the distributions' parameters, broadcastable to (batch, n) each
        :param into: where W̄ and b̄ are written
        :param free_into: where the slopes of the distribution's own parameters are written, shape (n,) each
        :param h_bar: where h̄ is written, shape (batch, n_hidden)
        """
        output_bar, *free_bar = slopes
        ones = row_of_ones(len(output_bar))
        np.dot(output_bar.T, hidden, out=into.weight)
        np.dot(ones, output_bar, out=into.bias)
        np.dot(output_bar, self.actor_head.weight, out=h_bar)
        for part, place in zip(free_bar, free_into, strict=True):
            if len(part) == len(ones):
                np.dot(ones, part, out=place)
            else:  # one row stands for equal ones
                np.multiply(part[0], len(ones), out=place)

    def critic_head_backward(self, hidden: NumpyArray, slope: NumpyArray, h_bar: NumpyArray) -> None:
        """
        The backward pass of the critic's head, written to ``gradient``.

        :param hidden: the critic's last h, shape (batch, n_hidden)
        :param slope: with respect to V, shape (batch,)
        :param h_bar: where h̄ is written, shape (batch, n_hidden)
        """
        np.dot(slope, hidden, out=self.critic_head_gradient.weight[0])
        self.critic_head_gradient.bias[0] = total(slope)
        np.dot(slope[:, None], self.critic_head.weight, out=h_bar)


class NetworksPass:
    """
    A forward pass of both networks.

    :param networks: whose
    :param outputs: of the batch
    :param passes: of each trunk
    :param same_features: whether both networks had the same features
    """

    __slots__ = ("networks", "outputs", "passes", "same_features")

    def __init__(
        self, networks: ActorCriticNetworks, outputs: Outputs[NumpyArray], passes: list[TrunkPass], same_features: bool
    ) -> None:
        self.networks, self.outputs, self.passes, self.same_features = networks, outputs, passes, same_features

    def pullback(self, slopes: Slopes, to_features: bool = False) -> NumpyArray | None:
        """
        Jᵀ u, written to the networks' part of the flat gradient.

        :param slopes: u
        :param to_features: whether the slopes with respect to the features are wanted
        :return: those, of the shape that the features had, if they are wanted; valid until the next call
        """
        networks, passes = self.networks, self.passes
        assert slopes.values is not None
        h_bars = [trunk.gradient_buffer(len(slopes.values)) for trunk in networks.trunks]
        networks.actor_head_backward(
            passes[0].hidden[-1][0],
            slopes.parameters,
            networks.actor_head_gradient,
            networks.free_gradient,
            h_bars[0][0],
        )
        networks.critic_head_backward(passes[-1].hidden[-1][-1], slopes.values, h_bars[-1][-1])
        x_bars = [
            trunk.backward(layers, hidden, layer_slopes, h_bar, into, to_features)
            for trunk, layers, (hidden, layer_slopes), h_bar, into in zip(
                networks.trunks, networks.layers, passes, h_bars, networks.layer_gradients, strict=True
            )
        ]
        if not to_features:
            return None
        return np.add(x_bars[0][:1], x_bars[-1][-1:]) if self.same_features else np.concatenate(x_bars)


class CriticPass:
    """
    A forward pass of the critic.

    :param networks: whose
    :param outputs: of the batch, without an actor
    :param trunk_pass: of the critic's trunk
    """

    __slots__ = ("networks", "outputs", "trunk_pass")

    def __init__(self, networks: ActorCriticNetworks, outputs: Outputs[NumpyArray], trunk_pass: TrunkPass) -> None:
        self.networks, self.outputs, self.trunk_pass = networks, outputs, trunk_pass

    def pullback(self, slopes: Slopes, to_features: bool = False) -> NumpyArray | None:
        """
        Jᵀ u, written to the critic's part of the flat gradient.

        :param slopes: u
        :param to_features: whether the slope with respect to the features is wanted
        :return: that, shape (1, batch, n_features), if it is wanted; valid until the next call
        """
        networks, (hidden, layer_slopes), trunk = self.networks, self.trunk_pass, self.networks.critic.trunk
        assert slopes.values is not None
        h_bar = trunk.gradient_buffer(len(slopes.values))
        networks.critic_head_backward(hidden[-1][-1], slopes.values, h_bar[-1])
        x_bar = trunk.backward(
            networks.critic_layers, hidden, layer_slopes, h_bar, networks.critic_layer_gradients, to_features
        )
        return x_bar if to_features else None


class ActorPass:
    """
    A forward pass of the actor, with its Jacobian; see :class:`sb3_policyopt.objectives.outputs.Pass`.

    :param networks: whose
    :param parameters: of the distributions
    :param trunk_pass: of the actor's trunk
    """

    def __init__(self, networks: ActorCriticNetworks, parameters: tuple[NumpyArray, ...], trunk_pass: TrunkPass) -> None:
        self.networks, self.trunk_pass = networks, trunk_pass
        self.outputs = Outputs(networks.family, parameters, np.empty(0, np.float32))

    @property
    def parameters(self) -> tuple[NumpyArray, ...]:
        """Of the action distributions."""
        return self.outputs.parameters

    def metric(self) -> Callable[[tuple[NumpyArray, ...]], tuple[NumpyArray, ...]]:
        """That of the family."""
        return partial(self.networks.family.fisher_metric, self.parameters)

    def pushforward(self, direction: th.Tensor, dx: NumpyArray | None = None) -> tuple[NumpyArray, ...]:
        """
        J v by the tangent pass.

        :param direction: v, shape (n_actor,)
        :param dx: how the features move beside, shape (1, batch, n_features); None if they do not
        :return: how the distributions' parameters move
        """
        networks, (hidden, slopes), vector = self.networks, self.trunk_pass, direction.numpy()
        trunk, along = networks.actor.trunk, networks.actor.head(vector)
        moved = trunk.tangent(networks.actor_layers, hidden, slopes, trunk.layers(vector), dx)
        output = hidden[-1][0] @ along.weight.T
        output += along.bias
        if moved is not None:
            output += moved[0] @ networks.actor_head.weight.T
        return (output, *(part[None] for part in networks.free_of(vector)))

    def pullback(self, slopes: tuple[NumpyArray, ...]) -> th.Tensor:
        """Jᵀ u by the backward pass."""
        product = np.empty(self.networks.n_actor, np.float32)
        self.backward(slopes, product)
        return th.from_numpy(product)

    def backward(self, slopes: tuple[NumpyArray, ...], product: NumpyArray, to_features: bool = False) -> NumpyArray:
        """
        Jᵀ u, written to the network's part of a vector.

        :param slopes: u, broadcastable to (batch, n) each
        :param product: of the actor's parameters, shape (n_actor,)
        :param to_features: whether the slope with respect to the features is wanted
        :return: that, shape (1, batch, n_features), if it is wanted; valid until the next call
        """
        networks, (hidden, layer_slopes), trunk = self.networks, self.trunk_pass, self.networks.actor.trunk
        h_bar = trunk.gradient_buffer(hidden[0].shape[1])
        networks.actor_head_backward(hidden[-1][0], slopes, networks.actor.head(product), networks.free_of(product), h_bar[0])
        return trunk.backward(networks.actor_layers, hidden, layer_slopes, h_bar, trunk.layers(product), to_features)
