"""MlpPolicy on the CPU by explicit formulas, in NumPy on the memory of the torch parameters: see :mod:`.networks`."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt.maths import losses
from sb3_policyopt.maths.arrays import mean
from sb3_policyopt.models.model import Batch, Expansion, PPOCoefficients, Terms
from sb3_policyopt.models.networks.actor_critic import Pass
from sb3_policyopt.models.networks.engine import NetworksEngine
from sb3_policyopt.models.networks.sb3_layout import features_extractors, make_features, sb3_parameters
from sb3_policyopt.rollout.buffers import flattened

Array = NDArray[Any]


def action_type(space: spaces.Space[Any]) -> type[np.generic]:
    """
    The type of actions in an update, whatever the space's own: as SB3's buffer and algorithms hand them to a distribution.

    :param space: Box, Discrete, MultiDiscrete or MultiBinary
    :return: float32, or int64 for what is used as a column number
    """
    return np.int64 if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) else np.float32


class ClosedFormEngine(NetworksEngine):
    """
    The engine for MlpPolicy on the CPU; see the module's text.

    :param policy: a policy in which :func:`sb3_policyopt.models.choice.closed_form_obstacle` found no obstacle
    """

    name = "closed_form"

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy, *sb3_parameters(policy))
        self._read_off(policy, *features_extractors(policy))
        self.features = make_features(policy)

    def serves(self) -> bool:
        """The networks fit, nothing of them is frozen, and the policy has no further parameters."""
        trainable = {id(parameter) for parameter in self.policy.parameters() if parameter.requires_grad}
        known = {id(parameter) for parameter in self.flat.parameters}
        return trainable == known and self._networks_serve()

    # ------------------------------------------------------------------ rollout

    def act(self, observations: Any) -> tuple[Array, Array, Array]:
        """One forward pass of both networks, and the next piece of noise."""
        return self.networks.act(self.features(observations)[None])

    def value(self, observations: Any) -> Array:
        """One forward pass of the critic."""
        return self.networks.value(self.features(observations)[None])

    # ------------------------------------------------------------------ update

    def load(self, buffer: RolloutBuffer) -> Batch:
        """Observations become features here, once a rollout; columns of actions lie together, as those of the means do."""
        observations, actions, *scalars = flattened(buffer)
        return Batch(
            self.features(observations),
            np.asfortranarray(actions.reshape(len(actions), -1), dtype=action_type(self.policy.action_space)),
            *(np.asarray(scalar, dtype=np.float32) for scalar in scalars),
        )

    def minibatches(self, rollout: Batch, batch_size: int, normalized: bool = False) -> Iterator[Batch]:
        """Shuffle the whole rollout once, so that minibatches are contiguous pieces of it."""
        self._moments_checked = False  # once a pass: between its minibatches no code runs that is not ours
        order = np.random.permutation(rollout.size)
        observations, actions, *scalars = rollout
        shuffled = Batch(observations.take(order, 0), actions.T.take(order, 1).T, *(scalar.take(order) for scalar in scalars))
        if normalized:
            shuffled = shuffled._replace(advantages=losses.normalize_pieces(shuffled.advantages, batch_size))
        for start in range(0, rollout.size, batch_size):
            yield shuffled.rows(slice(start, start + batch_size))

    def ppo_gradient(self, minibatch: Batch, coefficients: PPOCoefficients) -> Terms:
        """P5 and its gradient Jᵀ ∂(−L)/∂output."""
        self._bring_parameters(thorough=not self._moments_checked)
        terms, _ = self.networks.ppo_gradient(minibatch.observations[None], minibatch, coefficients)
        return terms

    def value_gradient(self, minibatch: Batch) -> Terms:
        """T10: Jᵀ ∂L_VF/∂V through the critic alone."""
        self._bring_parameters(thorough=not self._moments_checked)
        terms, _ = self.networks.value_gradient(minibatch.observations[None], minibatch.returns)
        return terms

    def expansion(self, rollout: Batch, thinning: int = 1) -> Expansion:
        """g = Jᵀ ∂J/∂output, and F as Jᵀ M J."""
        self._bring_parameters()
        with self.networks.threads(rollout.size):
            return self._expansion(rollout, thinning)

    def _expansion(self, rollout: Batch, thinning: int) -> Expansion:
        networks, x = self.networks, rollout.observations[None]
        actor_pass = networks.actor_forward(x, with_slopes=True)
        mean_or_logits, *log_std = networks.actor_parameters(actor_pass)
        old = (mean_or_logits, *(part.copy() for part in log_std))
        log_prob, score = networks.action_distribution.log_prob_and_score(old, rollout.actions)
        ratio = losses.probability_ratio(log_prob, rollout.old_log_prob)
        log_prob_slope = losses.surrogate_slope(ratio, rollout.advantages)
        gradient = networks.actor_transpose(actor_pass, [log_prob_slope[:, None] * part for part in score])
        if thinning > 1:
            actor_pass = networks.actor_forward(x[:, ::thinning], with_slopes=True)
        surrogate = float(losses.surrogate(ratio, rollout.advantages))
        return Expansion(surrogate, th.from_numpy(gradient), self._fisher(actor_pass), old)

    def _fisher(self, actor_pass: Pass) -> Callable[[th.Tensor], th.Tensor]:
        """
        T5: v ↦ Jᵀ M J v / batch.

        :param actor_pass: the actor's forward pass, with slopes
        :return: the function
        """
        networks = self.networks
        parameters = networks.actor_parameters(actor_pass)
        batch = len(parameters[0])

        def product(vector: th.Tensor) -> th.Tensor:
            with networks.threads(batch):
                tangent = networks.actor_tangent(actor_pass, vector.numpy())
                metric = networks.action_distribution.fisher_metric(parameters, tangent)
                return th.from_numpy(networks.actor_transpose(actor_pass, [part / batch for part in metric]))

        return product

    def surrogate_and_kl(self, rollout: Batch, old: Any) -> tuple[float, float]:
        """One forward pass of the actor."""
        networks = self.networks
        with networks.threads(rollout.size):
            parameters = networks.actor_parameters(networks.actor_forward(rollout.observations[None]))
        log_prob = networks.action_distribution.log_prob(parameters, rollout.actions)
        ratio = losses.probability_ratio(log_prob, rollout.old_log_prob)
        kl = networks.action_distribution.kl(old, parameters)
        return float(losses.surrogate(ratio, rollout.advantages)), float(mean(kl))
