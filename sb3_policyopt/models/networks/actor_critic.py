"""
Actor and critic above their features, by explicit formulas in NumPy on the memory of the torch parameters.

Everything that the algorithms ask for is made of a network's Jacobian J and its transpose (see :mod:`.mlp`), with the
slopes of :mod:`sb3_policyopt.maths`:

    ∇(−L) = Jᵀ (∂(−L)/∂output)                 P5
    g     = Jᵀ (∂J/∂output)                     T3
    F v   = Jᵀ M J v                            T5, with the metric M of the action distribution

Features are arrays of shape (1, batch, n_features) if both networks see the same, (2, batch, n_features) if each has its
own: the actor's first, the critic's last.
"""

from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_policyopt.distributions.family import DiagonalGaussian
from sb3_policyopt.distributions.table import make_action_distribution
from sb3_policyopt.global_state import threads_for
from sb3_policyopt.maths import losses
from sb3_policyopt.maths.arrays import row_of_ones, total
from sb3_policyopt.models.model import Batch, PPOCoefficients, Terms
from sb3_policyopt.models.networks.activations import Activation, make_activation
from sb3_policyopt.models.networks.few_rows import WORTH_JOINING, JoinedNetworks
from sb3_policyopt.models.networks.layers import Layer, Network, Trunk
from sb3_policyopt.models.networks.sb3_layout import activation_modules, linear_layers
from sb3_policyopt.optimisation.flat_parameters import FlatParameters

Array = NDArray[Any]
Pass: TypeAlias = tuple[list[Array], list[Array]]
"""What a trunk's forward pass leaves: h of each layer, the input first, and φ'(z) of each layer."""


class ActorCriticNetworks:
    """
    The two multilayer perceptrons of an SB3 policy, with their heads and the action distribution.

    :param policy: in which :func:`sb3_policyopt.models.choice.networks_obstacle` found no obstacle
    :param flat: the policy's parameters; the layers of each network lie in it one after the other, head last, and log_std
        after the actor's
    """

    def __init__(self, policy: ActorCriticPolicy, flat: FlatParameters) -> None:
        actor_layers, critic_layers = linear_layers(policy)
        self.gaussian = isinstance(policy.action_space, spaces.Box)
        self.action_distribution = make_action_distribution(policy.action_space)
        self.action_shape = policy.action_space.shape or ()
        self.theta: Array = flat.vector.numpy()
        self.gradient: Array = flat.gradient.numpy()
        self.starts = [flat.start_of(actor_layers[0].weight), flat.start_of(critic_layers[0].weight)]
        activations = activation_modules(policy)  # all with the same constants
        self._build(actor_layers, critic_layers, make_activation(activations[0]) if activations else None)
        self.log_std, self.log_std_gradient = self._log_std_of(self.theta), self._log_std_of(self.gradient)
        self._noise: Array = np.empty((0,), np.float32)
        self._next_noise = 0
        self._deviations: tuple[Array, Array] = (self._noise, self._noise)
        self._deviations_for = b""

    def _build(self, actor_layers: list[nn.Linear], critic_layers: list[nn.Linear], activation: Activation | None) -> None:
        """
        Lay the networks over the flat vector.

        :param actor_layers: hidden layers and head of the actor
        :param critic_layers: hidden layers and head of the critic
        :param activation: φ, None if there is no hidden layer
        """

        def widths(layers: list[nn.Linear]) -> list[int]:
            return [layer.in_features for layer in layers]

        actor_start, critic_start = self.starts
        self.actor = Network(Trunk(widths(actor_layers), activation, [actor_start]), actor_layers[-1].out_features)
        self.critic = Network(Trunk(widths(critic_layers), activation, [critic_start]), 1)
        self.n_actor = self.actor.end + self.gaussian * self.actor.n_out
        if self.actor.trunk.widths == self.critic.trunk.widths:
            self.trunks = [Trunk(self.actor.trunk.widths, activation, self.starts)]
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
        self.joined = None
        if len(self.actor_layers) == len(self.critic_layers):
            actor, critic = (
                [*(Layer(layer.weight[0], layer.bias[0, 0]) for layer in layers), head]
                for layers, head in ((self.actor_layers, self.actor_head), (self.critic_layers, self.critic_head))
            )
            # The networks' own stretch of θ, without the layers of an extractor that both share.
            self.joined = JoinedNetworks(self.theta[actor_start : self.critic.end], actor, critic, activation)

    def _log_std_of(self, vector: Array) -> Array:
        """
        A Gaussian's entries after the actor's layers.

        :param vector: of parameters, gradients or tangents
        :return: its view, shape (n,); meaningless without a Gaussian
        """
        return vector[self.n_actor - self.actor.n_out : self.n_actor]

    def threads(self, batch: int) -> AbstractContextManager[None]:
        """
        Threads that suit the networks' matrix products.

        :param batch: number of samples
        :return: a context
        """
        return threads_for(batch * self._largest_layer)

    # ------------------------------------------------------------------ rollout

    def start_rollout(self, n_steps: int, n_envs: int) -> None:
        """Draw the noise of all steps at once, from torch's global generator."""
        shape = (n_steps, n_envs, self.action_distribution.output_dim)
        tiny = float(np.finfo(np.float32).tiny)
        self._noise = self.action_distribution.noise(
            uniform=lambda: th.rand(shape).clamp_(min=tiny).numpy(), normal=lambda: th.randn(shape).numpy()
        )
        self._next_noise = 0
        self._deviations_for = b""

    def act(self, features: Array) -> tuple[Array, Array, Array]:
        """
        One forward pass of both networks, and the next piece of noise.

        :param features: of a row for each environment
        :return: actions, shape (n_envs, *action_shape); V, shape (n_envs,); ln π(a|s), shape (n_envs,)
        """
        if self._next_noise == len(self._noise):
            self.start_rollout(1, features.shape[1])
        parameters, values = self._few_outputs(features)
        actions, log_prob = self._sample(parameters, self._next_noise)
        self._next_noise += 1
        return actions.reshape(-1, *self.action_shape), values, log_prob

    def _sample(self, parameters: Any, step: int) -> tuple[Array, Array]:
        """
        Draw actions with the noise of a step. A Gaussian's σ ε and ln π are made for all steps at once, as σ is the same
        in every state, and made anew if it has changed: a callback can do that in the middle of a rollout.

        :param parameters: the distributions'
        :param step: number of the step since the noise was drawn
        :return: actions, shape (n_envs, n_actions); ln π(a|s), shape (n_envs,)
        """
        if not isinstance(self.action_distribution, DiagonalGaussian):
            return self.action_distribution.sample_and_log_prob(parameters, self._noise[step])
        log_std = self.log_std.tobytes()
        if log_std != self._deviations_for:
            self._deviations = self.action_distribution.deviations_and_log_prob(self.log_std, self._noise)
            self._deviations_for = log_std
        deviations, log_prob = self._deviations
        return parameters[0] + deviations[step], log_prob[step]

    def _few_outputs(self, features: Array) -> tuple[Any, Array]:
        """
        Forward pass of both networks on a row for each environment.

        :param features: of a row for each environment
        :return: the distributions' parameters, and V of shape (n_envs,)
        """
        shared, n_envs = len(features) == 1, features.shape[1]
        if self.joined is not None and shared and n_envs * self.joined.size <= WORTH_JOINING:
            output, values = self.joined.outputs(features[0])
            return self._with_log_std(output), values
        with self.threads(n_envs):
            parameters, values, _ = self._outputs(features)
        return parameters, values

    def value(self, x: Array) -> Array:
        """
        One forward pass of the critic.

        :param x: its features, shape (1, n, n_features)
        :return: V, shape (n,)
        """
        with self.threads(x.shape[1]):
            hidden, _ = self.critic.trunk.forward(self.critic_layers, x)
            return self._values(hidden[-1][-1])

    def _outputs(self, features: Array, with_slopes: bool = False) -> tuple[Any, Array, list[Pass]]:
        """
        Forward pass of both networks.

        :param features: of the batch
        :param with_slopes: whether φ'(z) is wanted
        :return: the distributions' parameters, V of shape (batch,), and each trunk's (hidden, slopes)
        """
        # One trunk of two networks gets all features, two trunks of one the first and the last.
        inputs = [features] if len(self.trunks) == 1 else [features[:1], features[-1:]]
        passes = [
            trunk.forward(layers, x, with_slopes) for trunk, layers, x in zip(self.trunks, self.layers, inputs, strict=True)
        ]
        # One trunk of two networks or two trunks of one: the actor is the first network of the first trunk,
        # the critic the last network of the last trunk.
        return self._parameters(passes[0][0][-1][0]), self._values(passes[-1][0][-1][-1]), passes

    def _parameters(self, hidden: Array) -> Any:
        """
        The actor's head.

        :param hidden: the actor's last h, shape (batch, n_hidden)
        :return: (mean, log_std) or (logits,)
        """
        output = np.dot(self.actor_head.weight, hidden.T).T  # columns lie together: NumPy sums such rows twice as fast
        output += self.actor_head.bias
        return self._with_log_std(output)

    def _with_log_std(self, output: Array) -> Any:
        """
        The distributions' parameters.

        :param output: of the actor's head, shape (batch, n)
        :return: (mean, log_std) or (logits,)
        """
        return (output, self.log_std) if self.gaussian else (output,)

    def _values(self, hidden: Array) -> Array:
        """
        The critic's head.

        :param hidden: the critic's last h, shape (batch, n_hidden)
        :return: V, shape (batch,)
        """
        values: Array = hidden.dot(self.critic_head.weight[0])
        values += self.critic_head.bias
        return values

    # ------------------------------------------------------------------ update

    def ppo_gradient(
        self, features: Array, minibatch: Batch, coefficients: PPOCoefficients, to_features: bool = False
    ) -> tuple[Terms, Array | None]:
        """
        P5 and its gradient Jᵀ ∂(−L)/∂output, written to ``gradient``.

        :param features: of the minibatch
        :param minibatch: NumPy arrays; actions of shape (batch, n_actions)
        :param coefficients: ε, c₁, c₂ and the value clipping
        :param to_features: whether the slope with respect to the features is wanted
        :return: the terms of the loss and its diagnostics; ∂(−L)/∂features if wanted, valid until the next call
        """
        c = coefficients
        _, actions, old_values, old_log_prob, advantages, returns = minibatch
        parameters, values, passes = self._outputs(features, with_slopes=True)
        evaluation = self.action_distribution.evaluate(parameters, actions, entropy_gradient=c.ent_coef != 0)
        log_ratio = losses.log_ratio(evaluation.log_prob, old_log_prob)
        ratio = np.exp(log_ratio)

        policy_objective, policy_slope = losses.clipped_surrogate_and_slope(ratio, advantages, c.clip_range)
        descent = -policy_slope[:, None]
        output_slopes = [descent * score for score in evaluation.score]
        if c.ent_coef != 0:
            for slope, entropy_gradient in zip(output_slopes, evaluation.entropy_gradient, strict=True):
                slope -= (c.ent_coef / len(values)) * entropy_gradient
        value_loss, value_slope = losses.value_loss_and_slope(values, returns, old_values, c.clip_range_vf, c.value_clipping)
        x_bars = self._backward(passes, output_slopes, c.vf_coef * value_slope, to_features)

        terms = {
            "loss": losses.combined_loss(policy_objective, evaluation.mean_entropy, value_loss, c.ent_coef, c.vf_coef),
            "policy_gradient_loss": -policy_objective,
            "value_loss": value_loss,
            "entropy_loss": -evaluation.mean_entropy,
            **losses.ratio_diagnostics(log_ratio, ratio, c.clip_range),
        }
        if not to_features:
            return terms, None
        return terms, np.add(x_bars[0][:1], x_bars[-1][-1:]) if len(features) == 1 else np.concatenate(x_bars)

    def _backward(self, passes: list[Pass], output_slopes: list[Array], value_slope: Array, to_features: bool) -> list[Array]:
        """
        Jᵀ u for both networks, written to ``gradient``.

        :param passes: each trunk's (hidden, slopes)
        :param output_slopes: with respect to the distributions' parameters, shape (batch, n) each
        :param value_slope: with respect to V, shape (batch,)
        :param to_features: whether the slopes with respect to the features are wanted
        :return: those for each trunk, shape (networks, batch, n_features), if they are wanted
        """
        h_bars = [trunk.gradient_buffer(len(value_slope)) for trunk in self.trunks]
        self._actor_head_backward(
            passes[0][0][-1][0], output_slopes, self.actor_head_gradient, self.log_std_gradient, h_bars[0][0]
        )
        self._critic_head_backward(passes[-1][0][-1][-1], value_slope, h_bars[-1][-1])
        x_bars = []
        for trunk, layers, (hidden, slopes), h_bar, into in zip(
            self.trunks, self.layers, passes, h_bars, self.layer_gradients, strict=True
        ):
            x_bars.append(trunk.backward(layers, hidden, slopes, h_bar, into, to_features))
        return x_bars

    def _actor_head_backward(self, hidden: Array, output_slopes: Any, into: Layer, log_std_into: Array, h_bar: Array) -> None:
        """
        The backward pass of the actor's head.

        :param hidden: the actor's last h, shape (batch, n_hidden)
        :param output_slopes: with respect to the distributions' parameters, broadcastable to (batch, n) each
        :param into: where W̄ and b̄ are written
        :param log_std_into: where a Gaussian's slope of log_std is written, shape (n,)
        :param h_bar: where h̄ is written, shape (batch, n_hidden)
        """
        output_bar, *log_std_bar = output_slopes
        ones = row_of_ones(len(output_bar))
        np.dot(output_bar.T, hidden, out=into.weight)
        np.dot(ones, output_bar, out=into.bias)
        np.dot(output_bar, self.actor_head.weight, out=h_bar)
        for part in log_std_bar:  # of a Gaussian; one row stands for equal ones
            if len(part) == len(ones):
                np.dot(ones, part, out=log_std_into)
            else:
                np.multiply(part[0], len(ones), out=log_std_into)

    def _critic_head_backward(self, hidden: Array, value_slope: Array, h_bar: Array) -> None:
        """
        The backward pass of the critic's head, written to ``gradient``.

        :param hidden: the critic's last h, shape (batch, n_hidden)
        :param value_slope: with respect to V, shape (batch,)
        :param h_bar: where h̄ is written, shape (batch, n_hidden)
        """
        np.dot(value_slope, hidden, out=self.critic_head_gradient.weight[0])
        self.critic_head_gradient.bias[0] = total(value_slope)
        np.dot(value_slope[:, None], self.critic_head.weight, out=h_bar)

    def value_gradient(self, x: Array, returns: Array, to_features: bool = False) -> tuple[Terms, Array | None]:
        """
        T10: Jᵀ ∂L_VF/∂V through the critic alone, written to ``gradient``.

        :param x: the critic's features, shape (1, batch, n_features)
        :param returns: Rᵗ, shape (batch,)
        :param to_features: whether the slope with respect to the features is wanted
        :return: the value loss; its slope with respect to the features if wanted, valid until the next call
        """
        trunk = self.critic.trunk
        hidden, slopes = trunk.forward(self.critic_layers, x, with_slopes=True)
        values = self._values(hidden[-1][-1])
        h_bar = trunk.gradient_buffer(len(values))
        value_loss, value_slope = losses.value_loss_and_slope(values, returns)
        self._critic_head_backward(hidden[-1][-1], value_slope, h_bar[-1])
        x_bar = trunk.backward(self.critic_layers, hidden, slopes, h_bar, self.critic_layer_gradients, to_features)
        return {"value_loss": value_loss}, x_bar if to_features else None

    # ------------------------------------------------------------------ the actor's Jacobian

    def actor_forward(self, x: Array, with_slopes: bool = False) -> Pass:
        """
        The actor alone, up to its head.

        :param x: its features, shape (1, batch, n_features)
        :param with_slopes: whether φ'(z) is wanted
        :return: each layer's h, and each layer's φ'(z)
        """
        return self.actor.trunk.forward(self.actor_layers, x, with_slopes)

    def actor_parameters(self, actor_pass: Pass) -> Any:
        """
        The distributions' parameters.

        :param actor_pass: of :meth:`actor_forward`
        :return: (mean, log_std) or (logits,)
        """
        hidden, _ = actor_pass
        return self._parameters(hidden[-1][0])

    def actor_tangent(self, actor_pass: Pass, direction: Array) -> Any:
        """
        J v of the actor.

        :param actor_pass: of :meth:`actor_forward`, with slopes
        :param direction: v, shape (n_actor,)
        :return: how the distributions' parameters move, broadcastable to (batch, n) each
        """
        hidden, slopes = actor_pass
        trunk, along = self.actor.trunk, self.actor.head(direction)
        moved = trunk.tangent(self.actor_layers, hidden, slopes, trunk.layers(direction))
        output = hidden[-1][0] @ along.weight.T
        output += along.bias
        if moved is not None:
            output += moved[0] @ self.actor_head.weight.T
        return (output, self._log_std_of(direction)[None]) if self.gaussian else (output,)

    def actor_transpose(self, actor_pass: Pass, output_slopes: Any) -> Array:
        """
        Jᵀ u of the actor.

        :param actor_pass: of :meth:`actor_forward`, with slopes
        :param output_slopes: u, broadcastable to (batch, n) each
        :return: shape (n_actor,)
        """
        hidden, slopes = actor_pass
        trunk = self.actor.trunk
        product = np.empty(self.n_actor, np.float32)
        h_bar = trunk.gradient_buffer(hidden[0].shape[1])
        self._actor_head_backward(hidden[-1][0], output_slopes, self.actor.head(product), self._log_std_of(product), h_bar[0])
        trunk.backward(self.actor_layers, hidden, slopes, h_bar, trunk.layers(product))
        return product
