"""
MlpPolicy on the CPU by explicit formulas, in NumPy on the memory of the torch parameters.

A policy's two networks are chains of layers z = x Wᵀ + b, h = φ(z), with a linear head at the end. Write δx for a small
change of x and x̄ for the derivative of a scalar with respect to x. The three passes through a layer are

    forward     z = x Wᵀ + b              h = φ(z)
    tangent     δz = x δWᵀ + δb + δx Wᵀ    δh = φ'(z) δz          (J v: how the output moves if the parameters move by v)
    backward    z̄ = φ'(z) h̄               W̄ = z̄ᵀ x, b̄ = Σ z̄, x̄ = z̄ W   (Jᵀ u: the gradient of what has the slope u)

and everything that the algorithms ask for is made of them, with the slopes of :mod:`sb3_policyopt.maths`:

    ∇(−L) = Jᵀ (∂(−L)/∂output)                 P5
    g     = Jᵀ (∂J/∂output)                     T3
    F v   = Jᵀ M J v                            T5, with the metric M of the action distribution
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from sb3_policyopt.engines.action_spaces import make_action_distribution
from sb3_policyopt.engines.activations import Activation, make_activation
from sb3_policyopt.engines.blas import threads_for
from sb3_policyopt.engines.engine import Batch, Engine, Expansion, PPOCoefficients, Terms
from sb3_policyopt.engines.rollout_data import flattened
from sb3_policyopt.maths import losses
from sb3_policyopt.maths.arrays import mean

Array = NDArray[Any]


class Layer(NamedTuple):
    """Views of one layer's entries in a flat vector; the leading axis counts the networks of a stack."""

    weight: Array
    """shape (networks, n_out, n_in)"""
    bias: Array
    """shape (networks, 1, n_out)"""


class Trunk:
    """
    The hidden layers of one network, or of two networks of equal shape, whose layers are then computed together.

    :param widths: number of inputs, then of the units of each hidden layer
    :param activation: φ
    :param starts: where each network's entries begin in the flat vector; for each layer its weight, then its bias
    """

    def __init__(self, widths: list[int], activation: Activation | None, starts: list[int]) -> None:
        self.widths = widths
        self.activation = activation
        self.starts = starts
        self._work: dict[tuple[str, int, int], Array] = {}

    @property
    def size(self) -> int:
        """Number of entries of one network."""
        return sum((n_in + 1) * n_out for n_in, n_out in zip(self.widths, self.widths[1:], strict=False))

    def layers(self, vector: Array) -> list[Layer]:
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

    def _stacked(self, vector: Array, shape: tuple[int, int], stride: int) -> Array:
        itemsize = vector.itemsize
        return np.lib.stride_tricks.as_strided(vector, (len(self.starts), *shape), (stride, shape[1] * itemsize, itemsize))

    def work(self, name: str, layer: int, batch: int) -> Array:
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

    def forward(self, layers: list[Layer], x: Array, with_slopes: bool = False) -> tuple[list[Array], list[Array]]:
        """
        z = x Wᵀ + b, h = φ(z) through all layers.

        :param layers: of the parameters
        :param x: shape (batch, n_in)
        :param with_slopes: whether φ'(z) is wanted
        :return: the input and each layer's h, and each layer's φ'(z), shape (networks, batch, n_out); valid until the
            next call with the same batch size
        """
        batch = len(x)
        hidden, slopes = [x[None]], []
        for i, (weight, bias) in enumerate(layers, start=1):
            z = np.matmul(hidden[-1], weight.swapaxes(1, 2), out=self.work("hidden", i, batch))
            z += bias
            slope = self.work("slope", i, batch) if with_slopes else None
            assert self.activation is not None
            self.activation(z, slope)
            hidden.append(z)
            slopes.append(slope)
        return hidden, slopes  # type: ignore[return-value]

    def tangent(self, layers: list[Layer], hidden: list[Array], slopes: list[Array], direction: list[Layer]) -> Array | None:
        """
        δz = x δWᵀ + δb + δx Wᵀ, δh = φ'(z) δz through all layers; the input does not move.

        :param layers: of the parameters
        :param hidden: from :meth:`forward`
        :param slopes: from :meth:`forward`
        :param direction: of the tangent v
        :return: δh of the last layer, shape (networks, batch, n_out); None if there is no layer
        """
        moved: Array | None = None
        batch = hidden[0].shape[1]
        for i, (layer, along) in enumerate(zip(layers, direction, strict=True)):
            change = np.matmul(hidden[i], along.weight.swapaxes(1, 2), out=self.work("tangent", i + 1, batch))
            if moved is not None:
                change += np.matmul(moved, layer.weight.swapaxes(1, 2), out=self.work("scratch", i + 1, batch))
            change += along.bias
            change *= slopes[i]
            moved = change
        return moved

    def backward(self, layers: list[Layer], hidden: list[Array], slopes: list[Array], h_bar: Array, into: list[Layer]) -> None:
        """
        z̄ = φ'(z) h̄, W̄ = z̄ᵀ x, b̄ = Σ z̄, x̄ = z̄ W through all layers, the last one first.

        :param layers: of the parameters
        :param hidden: from :meth:`forward`
        :param slopes: from :meth:`forward`
        :param h_bar: slope of the scalar with respect to the last h, shape (networks, batch, n_out); overwritten
        :param into: where W̄ and b̄ are written
        """
        ones = np.ones((1, h_bar.shape[1]), np.float32)
        for i in reversed(range(len(layers))):
            h_bar *= slopes[i]  # now z̄
            np.matmul(h_bar.swapaxes(1, 2), hidden[i], out=into[i].weight)
            np.matmul(ones, h_bar, out=into[i].bias)
            if i > 0:
                h_bar = np.matmul(h_bar, layers[i].weight, out=self.work("backward", i, h_bar.shape[1]))

    def gradient_buffer(self, batch: int) -> Array:
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

    def head(self, vector: Array) -> Layer:
        """
        Views of the head in a vector of parameters, gradients or tangents.

        :param vector: float32, one-dimensional and contiguous
        :return: weight of shape (n_out, n_hidden), bias of shape (n_out,)
        """
        n_in = self.trunk.widths[-1]
        end = self.head_start + self.n_out * n_in
        return Layer(vector[self.head_start : end].reshape(self.n_out, n_in), vector[end : end + self.n_out])


class ClosedFormEngine(Engine):
    """
    The engine for MlpPolicy on the CPU; see the module's text.

    :param policy: a policy in which :func:`sb3_policyopt.engines.choice.closed_form_obstacle` found no obstacle
    """

    name = "closed_form"

    def __init__(self, policy: ActorCriticPolicy) -> None:
        actor_layers, critic_layers = linear_layers(policy)
        actor = [parameter for layer in actor_layers for parameter in (layer.weight, layer.bias)]
        critic = [parameter for layer in critic_layers for parameter in (layer.weight, layer.bias)]
        self.gaussian = isinstance(policy.action_space, spaces.Box)
        if self.gaussian:
            actor.append(policy.log_std)  # type: ignore[arg-type]
        super().__init__(policy, actor, critic)
        self.action_distribution = make_action_distribution(policy.action_space)
        self.features = feature_extractor(policy.observation_space, policy.normalize_images)
        self.theta: Array = self.flat.vector.numpy()
        self.gradient: Array = self.flat.gradient.numpy()
        self.action_shape = policy.action_space.shape or ()
        self._build_networks(actor_layers, critic_layers)
        self._noise: Array = np.empty((0,), np.float32)
        self._next_noise = 0

    def _build_networks(self, actor_layers: list[nn.Linear], critic_layers: list[nn.Linear]) -> None:
        """
        Lay the networks over the flat vector.

        :param actor_layers: hidden layers and head of the actor
        :param critic_layers: hidden layers and head of the critic
        """
        activation = make_activation(hidden_activation(self.policy))

        def widths(layers: list[nn.Linear]) -> list[int]:
            return [layer.in_features for layer in layers]

        self.actor = Network(Trunk(widths(actor_layers), activation, [0]), actor_layers[-1].out_features)
        self.critic = Network(Trunk(widths(critic_layers), activation, [self.n_actor]), 1)
        if self.actor.trunk.widths == self.critic.trunk.widths:
            self.trunks = [Trunk(self.actor.trunk.widths, activation, [0, self.n_actor])]
        else:
            self.trunks = [self.actor.trunk, self.critic.trunk]
        self._largest_layer = max(layer.in_features * layer.out_features for layer in actor_layers + critic_layers)
        # The views of θ and of its gradient never change, as the vectors never move.
        self.layers = [trunk.layers(self.theta) for trunk in self.trunks]
        self.layer_gradients = [trunk.layers(self.gradient) for trunk in self.trunks]
        self.actor_layers, self.critic_layers = self.actor.trunk.layers(self.theta), self.critic.trunk.layers(self.theta)
        self.actor_head, self.critic_head = self.actor.head(self.theta), self.critic.head(self.theta)
        self.critic_layer_gradients = self.critic.trunk.layers(self.gradient)
        self.critic_head_gradient = self.critic.head(self.gradient)

    def _threads(self, batch: int) -> AbstractContextManager[None]:
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

    def act(self, observations: Any) -> tuple[Array, Array, Array]:
        """One forward pass of both networks, and the next piece of noise."""
        if self._next_noise == len(self._noise):
            self.start_rollout(1, len(self._noise[0]) if len(self._noise) else len(observations))
        noise = self._noise[self._next_noise]
        self._next_noise += 1
        with self._threads(len(observations)):
            parameters, values, *_ = self._outputs(self.features(observations))
        actions = self.action_distribution.sample(parameters, noise)
        log_prob = self.action_distribution.log_prob(parameters, actions)
        return actions.reshape(-1, *self.action_shape), values, log_prob

    def value(self, observations: Any) -> Array:
        """One forward pass of the critic."""
        with self._threads(len(observations)):
            hidden, _ = self.critic.trunk.forward(self.critic_layers, self.features(observations))
            return self._values(hidden[-1][-1])

    def _outputs(self, x: Array, with_slopes: bool = False) -> tuple[Any, Array, list[Any]]:
        """
        Forward pass of both networks.

        :param x: features, shape (batch, n_features)
        :param with_slopes: whether φ'(z) is wanted
        :return: the distributions' parameters, V of shape (batch,), and each trunk's (hidden, slopes)
        """
        passes = [trunk.forward(layers, x, with_slopes) for trunk, layers in zip(self.trunks, self.layers, strict=True)]
        # One trunk of two networks or two trunks of one: the actor is the first network of the first trunk,
        # the critic the last network of the last trunk.
        return self._parameters(passes[0][0][-1][0]), self._values(passes[-1][0][-1][-1]), passes

    def _parameters(self, hidden: Array) -> Any:
        """
        The actor's head.

        :param hidden: the actor's last h, shape (batch, n_hidden)
        :return: (mean, log_std) or (logits,)
        """
        output = hidden @ self.actor_head.weight.T
        output += self.actor_head.bias
        return (output, self.policy.log_std.detach().numpy()) if self.gaussian else (output,)  # type: ignore[operator]

    def _values(self, hidden: Array) -> Array:
        """
        The critic's head.

        :param hidden: the critic's last h, shape (batch, n_hidden)
        :return: V, shape (batch,)
        """
        values: Array = hidden @ self.critic_head.weight[0]
        values += self.critic_head.bias
        return values

    # ------------------------------------------------------------------ update

    def load(self, buffer: RolloutBuffer) -> Batch:
        """Observations become features here, once a rollout."""
        batch = flattened(buffer)
        actions = batch.actions.reshape(batch.size, -1)
        return batch._replace(observations=self.features(batch.observations), actions=actions)

    def minibatches(self, rollout: Batch, batch_size: int) -> Iterator[Batch]:
        """Shuffle the whole rollout once, so that minibatches are contiguous pieces of it."""
        shuffled = rollout.rows(np.random.permutation(rollout.size))
        for start in range(0, rollout.size, batch_size):
            yield shuffled.rows(slice(start, start + batch_size))

    @contextmanager
    def updating(self, batch_size: int, critic_only: bool = False) -> Iterator[None]:
        """As the base class, with threads that suit the minibatches."""
        with self._threads(batch_size), super().updating(batch_size, critic_only):
            yield

    def ppo_gradient(self, minibatch: Batch, coefficients: PPOCoefficients) -> Terms:
        """P5 and its gradient Jᵀ ∂(−L)/∂output."""
        c = coefficients
        x, actions, old_values, old_log_prob, advantages, returns = minibatch
        parameters, values, passes = self._outputs(x, with_slopes=True)
        evaluation = self.action_distribution.evaluate(parameters, actions, entropy_gradient=c.ent_coef != 0)
        log_ratio = losses.log_ratio(evaluation.log_prob, old_log_prob)
        ratio = np.exp(log_ratio)

        log_prob_slope = -losses.clipped_surrogate_slope(ratio, advantages, c.clip_range)
        output_slopes = [log_prob_slope[:, None] * score for score in evaluation.score]
        if c.ent_coef != 0:
            for slope, entropy_gradient in zip(output_slopes, evaluation.entropy_gradient, strict=True):
                slope -= (c.ent_coef / len(x)) * entropy_gradient
        value_slope = c.vf_coef * losses.value_loss_slope(values, returns, old_values, c.clip_range_vf, c.value_clipping)
        self._backward(passes, output_slopes, value_slope)

        policy_objective = losses.clipped_surrogate(ratio, advantages, c.clip_range)
        entropy = mean(evaluation.entropy)
        value_loss = losses.value_loss(values, returns, old_values, c.clip_range_vf, c.value_clipping)
        return {
            "loss": losses.combined_loss(policy_objective, entropy, value_loss, c.ent_coef, c.vf_coef),
            "policy_gradient_loss": -policy_objective,
            "value_loss": value_loss,
            "entropy_loss": -entropy,
            **losses.ratio_diagnostics(log_ratio, ratio, c.clip_range),
        }

    def _backward(self, passes: list[Any], output_slopes: list[Array], value_slope: Array) -> None:
        """
        Jᵀ u for both networks, written to ``gradient``.

        :param passes: each trunk's (hidden, slopes)
        :param output_slopes: with respect to the distributions' parameters, shape (batch, n) each
        :param value_slope: with respect to V, shape (batch,)
        """
        h_bars = [trunk.gradient_buffer(len(value_slope)) for trunk in self.trunks]
        self._actor_head_backward(passes[0][0][-1][0], output_slopes, self.gradient, h_bars[0][0])
        self._critic_head_backward(passes[-1][0][-1][-1], value_slope, h_bars[-1][-1])
        for i, trunk in enumerate(self.trunks):
            hidden, slopes = passes[i]
            trunk.backward(self.layers[i], hidden, slopes, h_bars[i], self.layer_gradients[i])

    def _actor_head_backward(self, hidden: Array, output_slopes: Any, into: Array, h_bar: Array) -> None:
        """
        The backward pass of the actor's head.

        :param hidden: the actor's last h, shape (batch, n_hidden)
        :param output_slopes: with respect to the distributions' parameters, broadcastable to (batch, n) each
        :param into: vector where W̄, b̄ and the slope of log_std are written
        :param h_bar: where h̄ is written, shape (batch, n_hidden)
        """
        output_bar = output_slopes[0]
        head = self.actor.head(into)
        np.matmul(output_bar.T, hidden, out=head.weight)
        np.add.reduce(output_bar, 0, out=head.bias)
        np.matmul(output_bar, self.actor_head.weight, out=h_bar)
        if self.gaussian:
            log_std_bar = np.broadcast_to(output_slopes[1], output_bar.shape)
            np.add.reduce(log_std_bar, 0, out=into[self.n_actor - self.actor.n_out : self.n_actor])

    def _critic_head_backward(self, hidden: Array, value_slope: Array, h_bar: Array) -> None:
        """
        The backward pass of the critic's head, written to ``gradient``.

        :param hidden: the critic's last h, shape (batch, n_hidden)
        :param value_slope: with respect to V, shape (batch,)
        :param h_bar: where h̄ is written, shape (batch, n_hidden)
        """
        np.matmul(value_slope, hidden, out=self.critic_head_gradient.weight[0])
        self.critic_head_gradient.bias[0] = np.add.reduce(value_slope)
        np.multiply(value_slope[:, None], self.critic_head.weight, out=h_bar)

    def value_gradient(self, minibatch: Batch) -> Terms:
        """T10: Jᵀ ∂L_VF/∂V through the critic alone."""
        trunk = self.critic.trunk
        hidden, slopes = trunk.forward(self.critic_layers, minibatch.observations, with_slopes=True)
        values = self._values(hidden[-1][-1])
        h_bar = trunk.gradient_buffer(len(values))
        self._critic_head_backward(hidden[-1][-1], losses.value_loss_slope(values, minibatch.returns), h_bar[-1])
        trunk.backward(self.critic_layers, hidden, slopes, h_bar, self.critic_layer_gradients)
        return {"value_loss": losses.value_loss(values, minibatch.returns)}

    def expansion(self, rollout: Batch, thinning: int = 1) -> Expansion:
        """g = Jᵀ ∂J/∂output, and F as Jᵀ M J."""
        with self._threads(rollout.size):
            return self._expansion(rollout, thinning)

    def _expansion(self, rollout: Batch, thinning: int) -> Expansion:
        hidden, slopes = self.actor.trunk.forward(self.actor_layers, rollout.observations, with_slopes=True)
        mean_or_logits, *log_std = self._parameters(hidden[-1][0])
        old = (mean_or_logits, *(part.copy() for part in log_std))
        log_prob, score = self.action_distribution.log_prob_and_score(old, rollout.actions)
        ratio = losses.probability_ratio(log_prob, rollout.old_log_prob)
        log_prob_slope = losses.surrogate_slope(ratio, rollout.advantages)
        gradient = self._actor_transpose_product(hidden, slopes, [log_prob_slope[:, None] * part for part in score])
        if thinning > 1:
            features = rollout.observations[::thinning]
            hidden, slopes = self.actor.trunk.forward(self.actor_layers, features, with_slopes=True)
        surrogate = float(losses.surrogate(ratio, rollout.advantages))
        return Expansion(surrogate, th.from_numpy(gradient), self._fisher(hidden, slopes), old)

    def _actor_transpose_product(self, hidden: list[Array], slopes: list[Array], output_slopes: Any) -> Array:
        """
        Jᵀ u of the actor.

        :param hidden: from the actor's forward pass
        :param slopes: from the actor's forward pass
        :param output_slopes: u, broadcastable to (batch, n) each
        :return: shape (n_actor,)
        """
        trunk = self.actor.trunk
        product = np.empty(self.n_actor, np.float32)
        h_bar = trunk.gradient_buffer(hidden[0].shape[1])
        self._actor_head_backward(hidden[-1][0], output_slopes, product, h_bar[0])
        trunk.backward(self.actor_layers, hidden, slopes, h_bar, trunk.layers(product))
        return product

    def _fisher(self, hidden: list[Array], slopes: list[Array]) -> Callable[[th.Tensor], th.Tensor]:
        """
        T5: v ↦ Jᵀ M J v / batch.

        :param hidden: from the actor's forward pass
        :param slopes: from the actor's forward pass
        :return: the function
        """
        trunk, batch = self.actor.trunk, hidden[0].shape[1]
        parameters = self._parameters(hidden[-1][0])

        def product(vector: th.Tensor) -> th.Tensor:
            direction: Array = vector.numpy()
            along = self.actor.head(direction)
            with self._threads(batch):
                moved = trunk.tangent(self.actor_layers, hidden, slopes, trunk.layers(direction))
                output = hidden[-1][0] @ along.weight.T
                output += along.bias
                if moved is not None:
                    output += moved[0] @ self.actor_head.weight.T
                tangent = (output, direction[None, self.n_actor - self.actor.n_out :]) if self.gaussian else (output,)
                metric = self.action_distribution.fisher_metric(parameters, tangent)
                slopes_of_output = [part / batch for part in metric]
                return th.from_numpy(self._actor_transpose_product(hidden, slopes, slopes_of_output))

        return product

    def _fisher(self, hidden: list[Array], slopes: list[Array]) -> Callable[[th.Tensor], th.Tensor]:
        """
        T5: v ↦ Jᵀ M J v / batch.

        :param hidden: from the actor's forward pass
        :param slopes: from the actor's forward pass
        :return: the function
        """
        trunk, batch = self.actor.trunk, hidden[0].shape[1]
        parameters = self._parameters(hidden[-1][0])

        def product(vector: th.Tensor) -> th.Tensor:
            direction: Array = vector.numpy()
            along = self.actor.head(direction)
            moved = trunk.tangent(self.actor_layers, hidden, slopes, trunk.layers(direction))
            output = hidden[-1][0] @ along.weight.T
            output += along.bias
            if moved is not None:
                output += moved[0] @ self.actor_head.weight.T
            tangent = (output, direction[None, self.n_actor - self.actor.n_out :]) if self.gaussian else (output,)
            metric = self.action_distribution.fisher_metric(parameters, tangent)
            return th.from_numpy(self._actor_transpose_product(hidden, slopes, [part / batch for part in metric]))

        return product

    def surrogate_and_kl(self, rollout: Batch, old: Any) -> tuple[float, float]:
        """One forward pass of the actor."""
        with self._threads(rollout.size):
            hidden, _ = self.actor.trunk.forward(self.actor_layers, rollout.observations)
            parameters = self._parameters(hidden[-1][0])
        log_prob = self.action_distribution.log_prob(parameters, rollout.actions)
        ratio = losses.probability_ratio(log_prob, rollout.old_log_prob)
        kl = self.action_distribution.kl(old, parameters)
        return float(losses.surrogate(ratio, rollout.advantages)), float(mean(kl))

    def step(self, max_norm: float, loss: Any) -> Terms:
        """As the base class, without leaving NumPy."""
        gradient: Array = self.gradient[len(self.gradient) - len(self._stepped_gradient) :]
        norm = math.sqrt(float(gradient @ gradient))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            return {"grad_norm": norm, "skipped_updates": 1.0}
        if norm + 1e-6 > max_norm:
            gradient *= max_norm / (norm + 1e-6)
        if self._fused is not None:
            self._fused.step()
        else:
            self.policy.optimizer.step()
        return {"grad_norm": norm, "skipped_updates": 0.0}


def linear_layers(policy: ActorCriticPolicy) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """
    The linear layers of actor and critic, heads last.

    :param policy: an MlpPolicy
    :return: the actor's layers, the critic's layers
    """
    actor = [module for module in policy.mlp_extractor.policy_net if isinstance(module, nn.Linear)]
    critic = [module for module in policy.mlp_extractor.value_net if isinstance(module, nn.Linear)]
    return [*actor, policy.action_net], [*critic, policy.value_net]  # type: ignore[list-item]


def hidden_activation(policy: ActorCriticPolicy) -> nn.Module | None:
    """
    The activation between the layers; both networks have the same.

    :param policy: an MlpPolicy
    :return: the first activation module, None if there is no hidden layer
    """
    networks = (*policy.mlp_extractor.policy_net, *policy.mlp_extractor.value_net)
    return next((module for module in networks if not isinstance(module, nn.Linear)), None)


def feature_extractor(space: spaces.Space[Any], normalize_images: bool) -> Callable[[Any], Array]:
    """
    What SB3's preprocessing and FlattenExtractor do to observations.

    :param space: Box, Discrete, MultiDiscrete or MultiBinary
    :param normalize_images: whether images are divided by 255
    :return: observations of shape (n, ...) ↦ float32 features of shape (n, n_features)
    """
    if isinstance(space, spaces.Discrete):
        one_hot = np.eye(int(space.n), dtype=np.float32)
        return lambda observations: one_hot[observations.reshape(-1)]
    if isinstance(space, spaces.MultiDiscrete):
        tables = [np.eye(int(n), dtype=np.float32) for n in space.nvec.reshape(-1)]
        return lambda observations: np.concatenate(
            [table[column] for table, column in zip(tables, observations.reshape(len(observations), -1).T, strict=True)], 1
        )
    scale = np.float32(255) if normalize_images and is_image_space(space) else None

    def flatten(observations: Any) -> Array:
        features: Array = observations.reshape(len(observations), -1).astype(np.float32, copy=False)
        return features if scale is None else features / scale

    return flatten
