"""
Actor and critic above their features, by explicit formulas on the memory of the torch parameters, in NumPy or in torch.

Everything that the objectives ask for is made of the networks' Jacobian J and its transpose, see :mod:`.layers`. Features are
arrays of shape (1, batch, n_features) if both networks have the same, (2, batch, n_features) if each has its own: the actor's
first, the critic's last.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from typing import Any, Generic

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_policyopt.distributions import ActionDistribution
from sb3_policyopt.distributions.masking import penalties
from sb3_policyopt.global_state import threads_for
from sb3_policyopt.maths.arrays import ArrayT, NumpyArray, empty, namespace, product
from sb3_policyopt.models.networks.activations import identity, make_activation
from sb3_policyopt.models.networks.heads import actor_backward, actor_output, critic_backward, critic_values
from sb3_policyopt.models.networks.layers import Layer, Network, Trunk, TrunkPass
from sb3_policyopt.models.networks.library import Work
from sb3_policyopt.models.networks.sb3_layout import activation_modules, linear_layers
from sb3_policyopt.objectives.outputs import Outputs, Slopes
from sb3_policyopt.optimisation.flat_parameters import FlatParameters


class ActorCriticNetworks(Generic[ArrayT]):
    """
    The two multilayer perceptrons of an SB3 policy, with their heads and the action distribution's own parameters.

    :param policy: in which :func:`sb3_policyopt.models.obstacles.networks_obstacle` found no obstacle
    :param flat: the policy's parameters; the layers of each network lie in it one after the other, head last, and the
        distribution's own parameters after the actor's
    :param family: of the policy's action distribution
    :param theta: the flat vector, as an array of the library that computes
    :param gradient: its gradient, as such an array
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        flat: FlatParameters,
        family: ActionDistribution,
        theta: ArrayT,
        gradient: ArrayT,
    ) -> None:
        actor_layers, critic_layers = linear_layers(policy)
        self.family = family
        self.theta: ArrayT = theta
        self.gradient: ArrayT = gradient
        self.starts = [flat.start_of(actor_layers[0].weight), flat.start_of(critic_layers[0].weight)]
        activations = activation_modules(policy)  # all with the same constants
        self.activation = (make_activation(activations[0]) if activations else None) or identity
        self._build(actor_layers, critic_layers)

    @staticmethod
    def in_numpy(
        policy: ActorCriticPolicy, flat: FlatParameters, family: ActionDistribution
    ) -> "ActorCriticNetworks[NumpyArray]":
        """
        Networks that NumPy computes.

        :param policy: as above
        :param flat: as above, on the CPU
        :param family: as above
        :return: on the memory of the parameters
        """
        return ActorCriticNetworks(policy, flat, family, flat.vector.numpy(), flat.gradient.numpy())

    @staticmethod
    def in_torch(
        policy: ActorCriticPolicy, flat: FlatParameters, family: ActionDistribution
    ) -> "ActorCriticNetworks[th.Tensor]":
        """
        Networks that torch computes, without a graph.

        :param policy: as above
        :param flat: as above, on any device
        :param family: as above
        :return: on the memory of the parameters
        """
        return ActorCriticNetworks(policy, flat, family, flat.vector, flat.gradient)

    def _build(self, actor_layers: list[nn.Linear], critic_layers: list[nn.Linear]) -> None:
        """
        Lay the networks over the flat vector.

        :param actor_layers: hidden layers and head of the actor
        :param critic_layers: hidden layers and head of the critic
        """

        def network(layers: list[nn.Linear], start: int) -> Network[ArrayT]:
            trunk: Trunk[ArrayT] = Trunk([layer.in_features for layer in layers], self.activation, [start])
            return Network(trunk, layers[-1].out_features)

        self.actor: Network[ArrayT] = network(actor_layers, self.starts[0])
        self.critic: Network[ArrayT] = network(critic_layers, self.starts[1])
        self.n_actor: int = self.actor.end + len(self.family.free) * self.actor.n_out
        self.trunks: list[Trunk[ArrayT]] = [self.actor.trunk, self.critic.trunk]
        if self.actor.trunk.widths == self.critic.trunk.widths:
            self.trunks = [Trunk(self.actor.trunk.widths, self.activation, self.starts)]
        self._largest_layer = max(layer.in_features * layer.out_features for layer in actor_layers + critic_layers)
        # The views of θ and of its gradient never change, as the vectors never move.
        self.layers: list[list[Layer[ArrayT]]] = [trunk.layers(self.theta) for trunk in self.trunks]
        self.layer_gradients: list[list[Layer[ArrayT]]] = [trunk.layers(self.gradient) for trunk in self.trunks]
        self.actor_layers: list[Layer[ArrayT]] = self.actor.trunk.layers(self.theta)
        self.critic_layers: list[Layer[ArrayT]] = self.critic.trunk.layers(self.theta)
        self.actor_head: Layer[ArrayT] = self.actor.head(self.theta)
        self.critic_head: Layer[ArrayT] = self.critic.head(self.theta)
        self.critic_layer_gradients: list[Layer[ArrayT]] = self.critic.trunk.layers(self.gradient)
        self.actor_head_gradient: Layer[ArrayT] = self.actor.head(self.gradient)
        self.critic_head_gradient: Layer[ArrayT] = self.critic.head(self.gradient)
        self.free: tuple[ArrayT, ...] = self.free_of(self.theta)
        self.free_gradient: tuple[ArrayT, ...] = self.free_of(self.gradient)

    @property
    def work(self) -> Work:
        """What one row costs: a product forward, two backward, but one to the features."""
        chains: list[list[int]] = [[*self.actor.trunk.widths, self.actor.n_out], [*self.critic.trunk.widths, 1]]
        multiplications = units = 0
        for widths in chains:
            sizes = [n * n_next for n, n_next in pairwise(widths)]
            multiplications += 3 * sum(sizes) - sizes[0]
            units += sum(widths[1:-1])
        return Work(multiplications, units)

    def free_of(self, vector: ArrayT) -> tuple[ArrayT, ...]:
        """
        The entries of the distribution's own parameters, such as a Gaussian's log_std.

        :param vector: of parameters, gradients or tangents
        :return: views, shape (n,) each; none if the family has no such parameters
        """
        n, start = self.actor.n_out, self.actor.end
        return tuple([vector[start + i * n : start + (i + 1) * n] for i in range(len(self.family.free))])

    def keep_work(self, keep: bool) -> None:
        """
        Say what becomes of work arrays that were not used for long.

        :param keep: whether they stay, as a graph may use them
        """
        trunk: Trunk[ArrayT]
        for trunk in self.trunks:
            trunk.keeps_work = keep
        self.actor.trunk.keeps_work = self.critic.trunk.keeps_work = keep

    def own(self, vector: th.Tensor) -> ArrayT:
        """
        A vector in the library that computes.

        :param vector: of parameters, gradients or tangents
        :return: the same memory
        """
        array: ArrayT = vector.numpy() if isinstance(self.theta, np.ndarray) else vector
        return array

    def threads(self, batch: int) -> AbstractContextManager[None]:
        """
        Threads that suit the networks' matrix products.

        :param batch: number of samples
        :return: a context
        """
        return threads_for(batch * self._largest_layer)

    # ------------------------------------------------------------------ forward

    def forward(
        self, features: ArrayT, action_masks: ArrayT | None = None, with_slopes: bool = True
    ) -> "NetworksPass[ArrayT]":
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
        outputs = Outputs(self.family, parameters, critic_values(self.critic_head, passes[-1].hidden[-1][-1]))
        return NetworksPass(self, outputs, passes, len(features) == 1)

    def critic_forward(self, features: ArrayT, with_slopes: bool = True) -> "CriticPass[ArrayT]":
        """
        The critic alone.

        :param features: its own, shape (1, batch, n_features)
        :param with_slopes: whether the Jacobian will be asked for
        :return: V, and what the way back needs
        """
        trunk_pass = self.critic.trunk.forward(self.critic_layers, features, with_slopes)
        return CriticPass(
            self, Outputs(self.family, (), critic_values(self.critic_head, trunk_pass.hidden[-1][-1])), trunk_pass
        )

    def actor_forward(
        self, features: ArrayT, action_masks: ArrayT | None = None, with_slopes: bool = True
    ) -> "ActorPass[ArrayT]":
        """
        The actor alone.

        :param features: its own, shape (1, batch, n_features)
        :param action_masks: which actions are allowed, bool, shape (batch, n); None for all
        :param with_slopes: whether the Jacobian will be asked for
        :return: the distributions' parameters, and the Jacobian
        """
        trunk_pass = self.actor.trunk.forward(self.actor_layers, features, with_slopes)
        return ActorPass(self, self.distribution_parameters(trunk_pass.hidden[-1][0], action_masks), trunk_pass)

    def distribution_parameters(self, hidden: ArrayT, action_masks: ArrayT | None = None) -> tuple[ArrayT, ...]:
        """
        The actor's head, and M1 where there are masks.

        :param hidden: the actor's last h, shape (batch, n_hidden)
        :param action_masks: which actions are allowed, bool, shape (batch, n); None for all
        :return: (mean, log_std) or (logits,)
        """
        output = actor_output(self.actor_head, hidden)
        if action_masks is not None:
            output += penalties(action_masks)
        parameters: list[Any] = [output, *self.free]
        return tuple(parameters)


class NetworksPass(Generic[ArrayT]):
    """
    A forward pass of both networks.

    :param networks: whose
    :param outputs: of the batch
    :param passes: of each trunk
    :param same_features: whether both networks had the same features
    """

    __slots__ = ("networks", "outputs", "passes", "same_features")

    def __init__(
        self,
        networks: ActorCriticNetworks[ArrayT],
        outputs: Outputs[ArrayT],
        passes: list[TrunkPass[ArrayT]],
        same_features: bool,
    ) -> None:
        self.networks: ActorCriticNetworks[ArrayT] = networks
        self.outputs: Outputs[ArrayT] = outputs
        self.passes: list[TrunkPass[ArrayT]] = passes
        self.same_features = same_features

    def pullback(self, slopes: Slopes[ArrayT], to_features: bool = False) -> ArrayT | None:
        """
        Jᵀ u, written to the networks' part of the flat gradient.

        :param slopes: u
        :param to_features: whether the slopes with respect to the features are wanted
        :return: those, of the shape that the features had, if they are wanted; valid until the next call
        """
        networks: ActorCriticNetworks[ArrayT] = self.networks
        passes: list[TrunkPass[ArrayT]] = self.passes
        assert slopes.values is not None
        h_bars = [trunk.gradient_buffer(len(slopes.values), slopes.values) for trunk in networks.trunks]
        actor_backward(
            networks.actor_head,
            passes[0].hidden[-1][0],
            slopes.parameters,
            networks.actor_head_gradient,
            networks.free_gradient,
            h_bars[0][0],
        )
        into = networks.critic_head_gradient
        critic_backward(networks.critic_head, passes[-1].hidden[-1][-1], slopes.values, into, h_bars[-1][-1])
        x_bars = [
            trunk.backward(layers, forward.hidden, forward.slopes, h_bar, into, to_features)
            for trunk, layers, forward, h_bar, into in zip(
                networks.trunks, networks.layers, passes, h_bars, networks.layer_gradients, strict=True
            )
        ]
        if not to_features:
            return None
        if self.same_features:
            return x_bars[0][:1] + x_bars[-1][-1:]
        joined: ArrayT = namespace(x_bars[0]).concatenate(x_bars)
        return joined


class CriticPass(Generic[ArrayT]):
    """
    A forward pass of the critic.

    :param networks: whose
    :param outputs: of the batch, without an actor
    :param trunk_pass: of the critic's trunk
    """

    __slots__ = ("networks", "outputs", "trunk_pass")

    def __init__(self, networks: ActorCriticNetworks[ArrayT], outputs: Outputs[ArrayT], trunk_pass: TrunkPass[ArrayT]) -> None:
        self.networks: ActorCriticNetworks[ArrayT] = networks
        self.outputs: Outputs[ArrayT] = outputs
        self.trunk_pass: TrunkPass[ArrayT] = trunk_pass

    def pullback(self, slopes: Slopes[ArrayT], to_features: bool = False) -> ArrayT | None:
        """
        Jᵀ u, written to the critic's part of the flat gradient.

        :param slopes: u
        :param to_features: whether the slope with respect to the features is wanted
        :return: that, shape (1, batch, n_features), if it is wanted; valid until the next call
        """
        networks, trunk = self.networks, self.networks.critic.trunk
        hidden, layer_slopes = self.trunk_pass.hidden, self.trunk_pass.slopes
        assert slopes.values is not None
        h_bar = trunk.gradient_buffer(len(slopes.values), slopes.values)
        critic_backward(networks.critic_head, hidden[-1][-1], slopes.values, networks.critic_head_gradient, h_bar[-1])
        x_bar = trunk.backward(
            networks.critic_layers, hidden, layer_slopes, h_bar, networks.critic_layer_gradients, to_features
        )
        return x_bar if to_features else None


class ActorPass(Generic[ArrayT]):
    """
    A forward pass of the actor, with its Jacobian; see :class:`sb3_policyopt.objectives.outputs.Pass`.

    :param networks: whose
    :param parameters: of the distributions
    :param trunk_pass: of the actor's trunk
    """

    def __init__(
        self, networks: ActorCriticNetworks[ArrayT], parameters: tuple[ArrayT, ...], trunk_pass: TrunkPass[ArrayT]
    ) -> None:
        self.networks: ActorCriticNetworks[ArrayT] = networks
        self.trunk_pass: TrunkPass[ArrayT] = trunk_pass
        self.outputs: Outputs[ArrayT] = Outputs(networks.family, parameters, empty(networks.theta, 0))

    @property
    def parameters(self) -> tuple[ArrayT, ...]:
        """Of the action distributions."""
        return self.outputs.parameters

    def metric(self) -> Callable[[tuple[ArrayT, ...]], tuple[ArrayT, ...]]:
        """That of the family."""
        return partial(self.networks.family.fisher_metric, self.parameters)

    def pushforward(self, direction: th.Tensor, dx: ArrayT | None = None) -> tuple[ArrayT, ...]:
        """
        J v by the tangent pass.

        :param direction: v, shape (n_actor,)
        :param dx: how the features move beside, shape (1, batch, n_features); None if they do not
        :return: how the distributions' parameters move
        """
        networks: ActorCriticNetworks[ArrayT] = self.networks
        vector: ArrayT = networks.own(direction)
        hidden, slopes = self.trunk_pass.hidden, self.trunk_pass.slopes
        trunk, along = networks.actor.trunk, networks.actor.head(vector)
        moved = trunk.tangent(networks.actor_layers, hidden, slopes, trunk.layers(vector), dx)
        output = product(hidden[-1][0], along.weight.T)
        output += along.bias
        if moved is not None:
            output += product(moved[0], networks.actor_head.weight.T)
        moves: list[Any] = [output, *(part[None] for part in networks.free_of(vector))]
        return tuple(moves)

    def pullback(self, slopes: tuple[ArrayT, ...]) -> th.Tensor:
        """Jᵀ u by the backward pass."""
        found = empty(self.networks.theta, self.networks.n_actor)
        self.backward(slopes, found)
        return th.as_tensor(found)

    def backward(self, slopes: tuple[ArrayT, ...], into: ArrayT, to_features: bool = False) -> ArrayT:
        """
        Jᵀ u, written to the network's part of a vector.

        :param slopes: u, broadcastable to (batch, n) each
        :param into: of the actor's parameters, shape (n_actor,)
        :param to_features: whether the slope with respect to the features is wanted
        :return: that, shape (1, batch, n_features), if it is wanted; valid until the next call
        """
        networks, trunk = self.networks, self.networks.actor.trunk
        hidden, layer_slopes = self.trunk_pass.hidden, self.trunk_pass.slopes
        h_bar = trunk.gradient_buffer(hidden[0].shape[1], hidden[0])
        head_into, free_into = networks.actor.head(into), networks.free_of(into)
        actor_backward(networks.actor_head, hidden[-1][0], slopes, head_into, free_into, h_bar[0])
        return trunk.backward(networks.actor_layers, hidden, layer_slopes, h_bar, trunk.layers(into), to_features)
