"""
Torch for the features extractor, explicit formulas for the networks above it: CnnPolicy, MultiInputPolicy and policies with
an extractor of their own, on the CPU.

With x the features, the chain rule at x joins the two: the closed form (see :mod:`.networks`) gives the gradient of
everything above and x̄ = ∂(−L)/∂x, from which torch goes on backward.
"""

from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn

from sb3_policyopt.engines.autograd import AutogradEngine, Objectives
from sb3_policyopt.engines.engine import Batch, PPOCoefficients, Terms
from sb3_policyopt.engines.networks import ActorCriticNetworks
from sb3_policyopt.engines.networks_engine import NetworksEngine

Array = NDArray[Any]


class HybridEngine(NetworksEngine, AutogradEngine):
    """
    The engine for policies whose features extractor alone needs torch. What TRPO asks of the actor is left to autograd.

    :param policy: a policy in which :func:`sb3_policyopt.engines.choice.networks_obstacle` found no obstacle
    :param objectives: the algorithm, none of whose hooks is overridden
    :param channels_last: as of :class:`AutogradEngine`
    """

    name = "hybrid"

    def __init__(self, policy: ActorCriticPolicy, objectives: Objectives, channels_last: bool = False) -> None:
        super().__init__(policy, objectives, channels_last=channels_last)
        self.networks = ActorCriticNetworks(policy, self.flat)
        actor_start, critic_start = self.networks.starts
        # What lies before each network in the flat vector belongs to the extractors.
        self._extractor_gradients = self.flat.gradient[:actor_start], self.flat.gradient[self.n_actor : critic_start]
        n_before = self.flat.offsets.index(critic_start) - len(self.actor)
        self._critic_extractor: list[nn.Parameter] = self.critic[:n_before]

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
        for part in self._extractor_gradients:
            part.zero_()
        features = self._features(minibatch.observations, *self._extractors)
        learns = features.requires_grad
        terms, x_bar = self.networks.ppo_gradient(features.detach().numpy(), in_numpy(minibatch), coefficients, learns)
        if x_bar is not None:
            features.backward(th.from_numpy(x_bar))  # type: ignore[no-untyped-call]
        return terms

    def value_gradient(self, minibatch: Batch) -> Terms:
        """T10: Jᵀ ∂L_VF/∂V through the critic, and its extractor if it has one of its own."""
        self._extractor_gradients[1].zero_()
        with th.set_grad_enabled(bool(self._critic_extractor)):
            x = self._features(minibatch.observations, self.policy.vf_features_extractor)
        learns = x.requires_grad
        terms, x_bar = self.networks.value_gradient(x.detach().numpy(), minibatch.returns.numpy(), learns)
        if x_bar is not None:
            x.backward(th.from_numpy(x_bar), inputs=self._critic_extractor)  # type: ignore[no-untyped-call]
        return terms


def in_numpy(batch: Batch) -> Batch:
    """
    The memory of tensors on the CPU as arrays.

    :param batch: tensors
    :return: arrays, actions of shape (batch, n_actions); the observations stay as they are
    """
    observations, *rest = batch
    actions, *scalars = (tensor.numpy() for tensor in rest)
    return Batch(observations, np.reshape(actions, (batch.size, -1)), *scalars)
