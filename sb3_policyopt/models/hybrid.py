"""
Torch for the features extractor, explicit formulas for the networks above it: CnnPolicy, MultiInputPolicy and policies with
an extractor of their own, on the CPU.

With x the features, the chain rule at x joins the two: the closed form (see :mod:`.networks`) gives the gradient of
everything above and x̄ = ∂(−L)/∂x, from which torch goes on backward.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import obs_as_tensor

from sb3_policyopt.distributions import ActionDistribution
from sb3_policyopt.global_state import torch_threads
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.maths.terms import Terms
from sb3_policyopt.models.extractors import ExtractedPass, are_known
from sb3_policyopt.models.model import Decision, Model
from sb3_policyopt.models.networks.acting import Acting
from sb3_policyopt.models.networks.actor_critic import ActorCriticNetworks, CriticPass, NetworksPass
from sb3_policyopt.models.networks.library import LibraryRule
from sb3_policyopt.models.networks.sb3_layout import sb3_parameters
from sb3_policyopt.models.networks.serving import NetworksWatch
from sb3_policyopt.models.torch_policy import TorchModel
from sb3_policyopt.objectives.objective import Objective
from sb3_policyopt.objectives.outputs import Pass
from sb3_policyopt.objectives.trust_region import SurrogateHook, surrogate_and_kl
from sb3_policyopt.optimisation.optimiser import NumpyOptimiser, Optimiser
from sb3_policyopt.rollout.batch import Batch, Observations, as_arrays, of_features
from sb3_policyopt.rollout.context import NO_CONTEXT, Context
from sb3_policyopt.rollout.minibatches import RolloutData


class HybridModel(Model[th.Tensor]):
    """
    The model for policies whose features extractor alone needs torch. The actor's Jacobian, which TRPO needs, goes through
    SB3's extractors layer by layer (:mod:`.extractors`); through others it is torch's.

    :param policy: a policy in which :func:`sb3_policyopt.models.obstacles.networks_obstacle` found no obstacle
    :param family: of its action distribution
    :param channels_last: as of :class:`TorchModel`
    """

    name = "hybrid"

    def __init__(self, policy: ActorCriticPolicy, family: ActionDistribution, channels_last: bool = False) -> None:
        parameters = sb3_parameters(policy, family)
        super().__init__(policy, *parameters)
        self.torch = TorchModel(policy, parameters, channels_last=channels_last, flat=self.flat)
        self.networks = ActorCriticNetworks.in_numpy(policy, self.flat, family)
        self.tensors = ActorCriticNetworks.in_torch(policy, self.flat, family)
        self.rule = LibraryRule(self.networks.work)
        self.in_torch = False
        self.watch = NetworksWatch(policy, self.flat)
        self.acting = Acting(self.networks, policy.action_space.shape or (), self.tensors, self.rule)
        # What lies before each network in the flat vector belongs to the extractors.
        actor_start, critic_start = self.networks.starts
        self._critic_extractor = range(self.actor_count, self.flat.offsets.index(critic_start))
        self._extractor_parameters = [*range(self.flat.offsets.index(actor_start)), *self._critic_extractor]

    @property
    def channels_last(self) -> bool:
        """As of :class:`TorchModel`."""
        return self.torch.channels_last

    @channels_last.setter
    def channels_last(self, value: bool) -> None:
        self.torch.channels_last = value

    def serves(self) -> bool:
        """The networks fit, and the policy has the same modules and trainable parameters."""
        return self.torch.serves() and self.watch.serves()

    def fits(self) -> bool:
        """The networks' modules and parameters are the same objects, without hooks or methods of their own."""
        return self.watch.fits()

    def _extracted(self, observations: Observations[th.Tensor], *extractors: BaseFeaturesExtractor) -> list[th.Tensor]:
        """
        SB3's preprocessing and the extractors.

        :param observations: first axis batch
        :param extractors: one, or the actor's and the critic's
        :return: of each extractor, shape (batch, n_features)
        """
        extract = BasePolicy.extract_features
        return [extract(self.policy, observations, extractor) for extractor in extractors]  # type: ignore[arg-type]

    def _features(self, batch: Batch[th.Tensor], critic_only: bool) -> th.Tensor:
        """
        What the networks see of a batch.

        :param batch: transitions
        :param critic_only: whether the critic alone is computed
        :return: shape (1, batch, n_features), or (2, batch, n_features) if actor and critic see different features
        """
        extractors = (self.policy.vf_features_extractor,) if critic_only else self._extractors
        return th.stack(self._extracted(batch.observations, *extractors))

    @property
    def _extractors(self) -> tuple[BaseFeaturesExtractor, ...]:
        """The extractor of both networks, or the actor's and the critic's."""
        actor, critic = self.policy.pi_features_extractor, self.policy.vf_features_extractor
        return (actor,) if self.policy.share_features_extractor else (actor, critic)

    # ------------------------------------------------------------------ rollout

    def start_rollout(self, n_steps: int, n_envs: int) -> None:
        """Draw the noise of all steps at once, from torch's global generator."""
        self.acting.start_rollout(n_steps, n_envs)

    def act(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> Decision:
        """One forward pass of the extractors and both networks, and the next piece of noise."""
        with th.no_grad():
            features = th.stack(self._extracted(obs_as_tensor(observations, self.policy.device), *self._extractors))
        return self.acting.act(features.numpy(), context.action_masks)

    def values(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> NumpyArray:
        """One forward pass of the critic and its extractor."""
        with th.no_grad():
            extractor = self.policy.vf_features_extractor
            x = th.stack(self._extracted(obs_as_tensor(observations, self.policy.device), extractor))
        return self.acting.values(x.numpy())

    def action_parameters(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> NumpyArray:
        """As of :class:`TorchModel`."""
        return self.torch.action_parameters(observations, context)

    # ------------------------------------------------------------------ update

    def data(self, buffer: RolloutBuffer, sequence_length: int | None = None) -> RolloutData[th.Tensor]:
        """As of :class:`TorchModel`."""
        return self.torch.data(buffer, sequence_length)

    def gradient(self, objective: Objective, batch: Batch[th.Tensor]) -> Terms:
        """Jᵀ ∂(−L)/∂output down to the features, and from there torch's backward pass."""
        return self.over_pieces(self._gradient, objective, batch)

    def _gradient(self, objective: Objective, batch: Batch[th.Tensor]) -> Terms:
        numbers: Sequence[int] = self._critic_extractor if objective.critic_only else self._extractor_parameters
        # A shared extractor is the actor's, with all that it computes with.
        with th.set_grad_enabled(bool(numbers) or not (objective.critic_only and self.policy.share_features_extractor)):
            features = self._features(batch, objective.critic_only)
        self.flat.bring()  # an extractor may have given parameters other numbers or other memory
        networks: ActorCriticNetworks[Any] = self.tensors if self.in_torch else self.networks
        x, above = features.detach(), of_features(batch)
        rows: Batch[Any] = above if self.in_torch else as_arrays(above)
        inputs: Any = x if self.in_torch else x.numpy()
        if objective.critic_only:
            forward: CriticPass[Any] | NetworksPass[Any] = networks.critic_forward(inputs)
        else:
            forward = networks.forward(inputs, rows.context.get("action_masks"))
        slopes, terms = objective.known_slopes()(forward.outputs, rows)
        x_bar = forward.pullback(slopes, to_features=features.requires_grad)
        first = self.actor_count if objective.critic_only else 0
        gradients: list[th.Tensor | None] = [None] * len(self.flat.parameters[first:])
        if x_bar is not None and features.requires_grad:
            gradients = gradients_of(features, self.flat.parameters[first:], th.as_tensor(x_bar))
        self.flat.gather_below(gradients, first, numbers)
        return terms

    def _make_optimiser(self, first: int) -> Optimiser:
        return NumpyOptimiser(self.policy, self.flat, first, self.watch.check_after_foreign_step)

    # ------------------------------------------------------------------ the actor's Jacobian

    def threads(self, rows: int) -> AbstractContextManager[None]:
        """One for NumPy's products, as torch's threads compute the extractor. In a series of steps, the library is chosen."""
        self.rule.look()
        self.in_torch = self.rule.library(rows) == "torch"
        return torch_threads(self.rule.threads)

    @property
    def _layer_by_layer(self) -> bool:
        """Whether the Jacobian of the actor's extractor is known."""
        return are_known([self.policy.pi_features_extractor])

    def actor_pass(self, batch: Batch[th.Tensor]) -> Pass[th.Tensor]:
        """Layer by layer through SB3's extractors; through others as of :class:`TorchModel`."""
        if not self._layer_by_layer:
            return self.torch.actor_pass(batch)
        self.flat.bring()
        return ExtractedPass.of(self.policy, self.tensors, self.flat, batch)

    def surrogate_pass(self, hook: SurrogateHook, batch: Batch[th.Tensor]) -> tuple[float, th.Tensor, Pass[th.Tensor]]:
        """As :meth:`actor_pass`."""
        if not self._layer_by_layer:
            return self.torch.surrogate_pass(hook, batch)
        self.flat.bring()
        return ExtractedPass.of(self.policy, self.tensors, self.flat, batch).with_surrogate(hook, batch)

    def surrogate_and_kl(
        self, hook: SurrogateHook, batch: Batch[th.Tensor], old: tuple[th.Tensor, ...]
    ) -> tuple[float, float]:
        """One forward pass of the actor."""
        if not self._layer_by_layer:
            return self.torch.surrogate_and_kl(hook, batch, old)
        self.flat.push()
        forward = ExtractedPass.of(self.policy, self.tensors, self.flat, batch, with_jacobian=False)
        return surrogate_and_kl(hook, forward.outputs, batch, old)


def gradients_of(features: th.Tensor, parameters: Sequence[th.nn.Parameter], slopes: th.Tensor) -> list[th.Tensor | None]:
    """
    Jᵀ of the features by ``backward``, as ``torch.utils.checkpoint`` does not serve ``autograd.grad``.

    :param features: with their graph
    :param parameters: of the extractor
    :param slopes: ∂(−L)/∂features
    :return: the gradient of each parameter; None where the features do not depend on it
    """
    for parameter in parameters:
        parameter.grad = None
    th.autograd.backward(features, slopes)
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients
