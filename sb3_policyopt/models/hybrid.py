"""
Torch for the features extractor, explicit formulas for the networks above it: CnnPolicy, MultiInputPolicy and policies with
an extractor of their own, on the CPU.

With x the features, the chain rule at x joins the two: the closed form (see :mod:`.networks`) gives the gradient of
everything above and x̄ = ∂(−L)/∂x, from which torch goes on backward.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import obs_as_tensor

from sb3_policyopt.models.model import Batch, PPOCoefficients, Terms
from sb3_policyopt.models.networks.engine import NetworksEngine
from sb3_policyopt.models.networks.sb3_layout import sb3_parameters
from sb3_policyopt.models.torch_policy import AutogradEngine, Objectives

Array = NDArray[Any]


class HybridEngine(NetworksEngine, AutogradEngine):
    """
    The engine for policies whose features extractor alone needs torch. What TRPO asks of the actor is left to autograd.

    :param policy: a policy in which :func:`sb3_policyopt.models.choice.networks_obstacle` found no obstacle
    :param objectives: the algorithm, none of whose hooks is overridden
    :param channels_last: as of :class:`AutogradEngine`
    """

    name = "hybrid"

    def __init__(self, policy: ActorCriticPolicy, objectives: Objectives, channels_last: bool = False) -> None:
        super().__init__(policy, objectives, sb3_parameters(policy), channels_last=channels_last)
        self._read_off(policy)
        # What lies before each network in the flat vector belongs to the extractors.
        actor_start, critic_start = self.networks.starts
        self._critic_extractor = range(self._actor_count, self.flat.offsets.index(critic_start))
        self._extractor_parameters = [*range(self.flat.offsets.index(actor_start)), *self._critic_extractor]

    def serves(self) -> bool:
        """The networks fit, and the policy has the same modules and trainable parameters."""
        return super().serves() and self._networks_serve()

    def _features(self, observations: Any, *extractors: BaseFeaturesExtractor) -> th.Tensor:
        """
        SB3's preprocessing and the extractors.

        :param observations: tensors, first axis batch
        :param extractors: one, or the actor's and the critic's
        :return: shape (extractors, batch, n_features)
        """
        return th.stack([BasePolicy.extract_features(self.policy, observations, extractor) for extractor in extractors])

    @property
    def _extractors(self) -> tuple[BaseFeaturesExtractor, ...]:
        """The extractor of both networks, or the actor's and the critic's."""
        actor, critic = self.policy.pi_features_extractor, self.policy.vf_features_extractor
        return (actor,) if self.policy.share_features_extractor else (actor, critic)

    # ------------------------------------------------------------------ rollout

    def act(self, observations: Any) -> tuple[Array, Array, Array]:
        """One forward pass of the extractors and both networks, and the next piece of noise."""
        with th.no_grad():
            features = self._features(obs_as_tensor(observations, self.policy.device), *self._extractors)
        return self.networks.act(features.numpy())

    def value(self, observations: Any) -> Array:
        """One forward pass of the critic and its extractor."""
        with th.no_grad():
            x = self._features(obs_as_tensor(observations, self.policy.device), self.policy.vf_features_extractor)
        return self.networks.value(x.numpy())

    # ------------------------------------------------------------------ update

    def ppo_gradient(self, minibatch: Batch, coefficients: PPOCoefficients) -> Terms:
        """P5 and its gradient: Jᵀ ∂(−L)/∂output down to the features, and from there torch's backward pass."""
        self._bring_parameters()
        features = self._features(minibatch.observations, *self._extractors)
        learns = features.requires_grad
        terms, x_bar = self.networks.ppo_gradient(features.detach().numpy(), in_numpy(minibatch), coefficients, learns)
        self._extractor_backward(features, x_bar, self._extractor_parameters)
        return terms

    def value_gradient(self, minibatch: Batch) -> Terms:
        """T10: Jᵀ ∂L_VF/∂V through the critic, and its extractor if it has one of its own."""
        self._bring_parameters()
        with th.set_grad_enabled(bool(self._critic_extractor)):
            x = self._features(minibatch.observations, self.policy.vf_features_extractor)
        learns = x.requires_grad
        terms, x_bar = self.networks.value_gradient(x.detach().numpy(), minibatch.returns.numpy(), learns)
        self._extractor_backward(x, x_bar, self._critic_extractor)
        return terms

    def _extractor_backward(self, features: th.Tensor, x_bar: Array | None, numbers: Sequence[int]) -> None:
        """
        Torch's backward pass through the extractors, into ``flat.gradient``.

        :param features: with their graph
        :param x_bar: slope of the loss with respect to them; None if nothing before them learns
        :param numbers: of the extractors' parameters
        """
        gradients: Sequence[th.Tensor | None] = [None] * len(numbers)
        if x_bar is not None and numbers:
            parameters = [self.flat.parameters[i] for i in numbers]
            gradients = th.autograd.grad(features, parameters, th.from_numpy(x_bar), allow_unused=True)
        self._gather(gradients, numbers)


def in_numpy(batch: Batch) -> Batch:
    """
    The memory of tensors on the CPU as arrays.

    :param batch: tensors
    :return: arrays, actions of shape (batch, n_actions); the observations stay as they are
    """
    observations, *rest = batch
    actions, *scalars = (tensor.numpy() for tensor in rest)
    return Batch(observations, np.reshape(actions, (batch.size, -1)), *scalars)
