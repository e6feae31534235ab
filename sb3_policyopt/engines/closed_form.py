"""
MlpPolicy on the CPU by explicit formulas, in NumPy on the memory of the torch parameters.

Everything that the algorithms ask for is made of a network's Jacobian J and its transpose (see :mod:`.mlp`), with the
slopes of :mod:`sb3_policyopt.maths`:

    ∇(−L) = Jᵀ (∂(−L)/∂output)                 P5
    g     = Jᵀ (∂J/∂output)                     T3
    F v   = Jᵀ M J v                            T5, with the metric M of the action distribution
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_policyopt.engines.action_spaces import make_action_distribution
from sb3_policyopt.engines.activations import make_activation
from sb3_policyopt.engines.blas import threads_for
from sb3_policyopt.engines.engine import Batch, Engine, Expansion, PPOCoefficients, Terms
from sb3_policyopt.engines.joined import WORTH_JOINING, JoinedNetworks
from sb3_policyopt.engines.mlp import Layer, Network, Trunk
from sb3_policyopt.engines.mlp_policy import feature_extractor, hidden_activation, linear_layers
from sb3_policyopt.engines.rollout_data import flattened
from sb3_policyopt.maths import losses
from sb3_policyopt.maths.arrays import mean, row_of_ones, total
from sb3_policyopt.maths.distributions import DiagonalGaussian

Array = NDArray[Any]


class ClosedFormEngine(Engine):
    """
    The engine for MlpPolicy on the CPU; see the module's text.

    :param policy: a policy in which :func:`sb3_policyopt.engines.choice.closed_form_obstacle` found no obstacle
    """

    name = "closed_form"

    def __init__(self, policy: ActorCriticPolicy) -> None:
        actor_layers, critic_layers = linear_layers(policy)
        actor: list[nn.Parameter] = [parameter for layer in actor_layers for parameter in layer.parameters()]
        critic: list[nn.Parameter] = [parameter for layer in critic_layers for parameter in layer.parameters()]
        self.gaussian = isinstance(policy.action_space, spaces.Box)
        if self.gaussian:
            actor.append(policy.log_std)  # type: ignore[arg-type]
        super().__init__(policy, actor, critic)
        self.action_distribution = make_action_distribution(policy.action_space)
        self.features = feature_extractor(policy.observation_space, policy.normalize_images)
        self.theta: Array = self.flat.vector.numpy()
        self.gradient: Array = self.flat.gradient.numpy()
        self.log_std = self.theta[self.n_actor - self.action_distribution.output_dim : self.n_actor]
        self.action_shape = policy.action_space.shape or ()
        self._build_networks(actor_layers, critic_layers)
        self._stepped: Array = self.gradient
        self._noise: Array = np.empty((0,), np.float32)
        self._next_noise = 0
        self._deviations: tuple[Array, Array] = (self._noise, self._noise)
        self._deviations_for = b""

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
        self.joined = None
        if len(self.actor_layers) == len(self.critic_layers):
            actor, critic = (
                [*(Layer(layer.weight[0], layer.bias[0, 0]) for layer in layers), head]
                for layers, head in ((self.actor_layers, self.actor_head), (self.critic_layers, self.critic_head))
            )
            self.joined = JoinedNetworks(self.theta, actor, critic, activation)

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
        self._deviations_for = b""

    def act(self, observations: Any) -> tuple[Array, Array, Array]:
        """One forward pass of both networks, and the next piece of noise."""
        if self._next_noise == len(self._noise):
            self.start_rollout(1, len(self._noise[0]) if len(self._noise) else len(observations))
        parameters, values = self._few_outputs(self.features(observations))
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

    def _few_outputs(self, x: Array) -> tuple[Any, Array]:
        """
        Forward pass of both networks on a row for each environment.

        :param x: features, shape (n_envs, n_features)
        :return: the distributions' parameters, and V of shape (n_envs,)
        """
        if self.joined is not None and len(x) * self.joined.size <= WORTH_JOINING:
            output, values = self.joined.outputs(x)
            return self._with_log_std(output), values
        with self._threads(len(x)):
            parameters, values, _ = self._outputs(x)
        return parameters, values

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

    def load(self, buffer: RolloutBuffer) -> Batch:
        """Observations become features here, once a rollout."""
        batch = flattened(buffer)
        actions = batch.actions.reshape(batch.size, -1)
        return batch._replace(observations=self.features(batch.observations), actions=actions)

    def minibatches(self, rollout: Batch, batch_size: int, normalized: bool = False) -> Iterator[Batch]:
        """Shuffle the whole rollout once, so that minibatches are contiguous pieces of it."""
        order = np.random.permutation(rollout.size)
        shuffled = Batch(*(array.take(order, 0) for array in rollout))
        if normalized:
            shuffled = shuffled._replace(advantages=losses.normalize_pieces(shuffled.advantages, batch_size))
        for start in range(0, rollout.size, batch_size):
            yield shuffled.rows(slice(start, start + batch_size))

    @contextmanager
    def updating(self, batch_size: int, critic_only: bool = False) -> Iterator[None]:
        """As the base class, with threads that suit the minibatches."""
        with self._threads(batch_size), super().updating(batch_size, critic_only):
            self._stepped = self._stepped_gradient.numpy()
            yield

    def ppo_gradient(self, minibatch: Batch, coefficients: PPOCoefficients) -> Terms:
        """P5 and its gradient Jᵀ ∂(−L)/∂output."""
        c = coefficients
        x, actions, old_values, old_log_prob, advantages, returns = minibatch
        parameters, values, passes = self._outputs(x, with_slopes=True)
        evaluation = self.action_distribution.evaluate(parameters, actions, entropy_gradient=c.ent_coef != 0)
        log_ratio = losses.log_ratio(evaluation.log_prob, old_log_prob)
        ratio = np.exp(log_ratio)

        policy_objective, policy_slope = losses.clipped_surrogate_and_slope(ratio, advantages, c.clip_range)
        descent = -policy_slope[:, None]
        output_slopes = [descent * score for score in evaluation.score]
        if c.ent_coef != 0:
            for slope, entropy_gradient in zip(output_slopes, evaluation.entropy_gradient, strict=True):
                slope -= (c.ent_coef / len(x)) * entropy_gradient
        value_loss, value_slope = losses.value_loss_and_slope(values, returns, old_values, c.clip_range_vf, c.value_clipping)
        self._backward(passes, output_slopes, c.vf_coef * value_slope)

        return {
            "loss": losses.combined_loss(policy_objective, evaluation.mean_entropy, value_loss, c.ent_coef, c.vf_coef),
            "policy_gradient_loss": -policy_objective,
            "value_loss": value_loss,
            "entropy_loss": -evaluation.mean_entropy,
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
        output_bar, *log_std_bar = output_slopes
        head, ones = self.actor.head(into), row_of_ones(len(output_bar))
        np.dot(output_bar.T, hidden, out=head.weight)
        np.dot(ones, output_bar, out=head.bias)
        np.dot(output_bar, self.actor_head.weight, out=h_bar)
        for part in log_std_bar:  # of a Gaussian; one row stands for equal ones
            log_std_gradient = into[self.n_actor - self.actor.n_out : self.n_actor]
            if len(part) == len(ones):
                np.dot(ones, part, out=log_std_gradient)
            else:
                np.multiply(part[0], len(ones), out=log_std_gradient)

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

    def value_gradient(self, minibatch: Batch) -> Terms:
        """T10: Jᵀ ∂L_VF/∂V through the critic alone."""
        trunk = self.critic.trunk
        hidden, slopes = trunk.forward(self.critic_layers, minibatch.observations, with_slopes=True)
        values = self._values(hidden[-1][-1])
        h_bar = trunk.gradient_buffer(len(values))
        value_loss, value_slope = losses.value_loss_and_slope(values, minibatch.returns)
        self._critic_head_backward(hidden[-1][-1], value_slope, h_bar[-1])
        trunk.backward(self.critic_layers, hidden, slopes, h_bar, self.critic_layer_gradients)
        return {"value_loss": value_loss}

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
        gradient = self._stepped
        norm = math.sqrt(gradient.dot(gradient))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            return {"grad_norm": norm, "skipped_updates": 1.0}
        if norm + 1e-6 > max_norm:
            gradient *= max_norm / (norm + 1e-6)
        if self._fused is not None:
            self._fused.step()
        else:
            self.policy.optimizer.step()
        return {"grad_norm": norm, "skipped_updates": 0.0}
