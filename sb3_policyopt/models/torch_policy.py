"""Any SB3 policy on any device, by torch's automatic differentiation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, RolloutBufferSamples
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sb3_policyopt.distributions.torch_parts import TorchFamily, torch_distributions
from sb3_policyopt.global_state import unvalidated
from sb3_policyopt.identity.kinds import kind_of
from sb3_policyopt.identity.structure import Structure
from sb3_policyopt.maths.arrays import Array, NumpyArray
from sb3_policyopt.maths.terms import Terms, accumulate, detached
from sb3_policyopt.models import policy_calls
from sb3_policyopt.models.channels_last import to_channels_last
from sb3_policyopt.models.model import TensorDecision
from sb3_policyopt.models.tensor_model import TensorModel
from sb3_policyopt.objectives.objective import Objective
from sb3_policyopt.objectives.results import surrogate
from sb3_policyopt.objectives.trust_region import SurrogateHook
from sb3_policyopt.optimisation.flat_parameters import FlatParameters
from sb3_policyopt.optimisation.optimiser import Optimiser
from sb3_policyopt.rollout.batch import Batch, Observations
from sb3_policyopt.rollout.buffers import flattened, memory_columns, samples_itself
from sb3_policyopt.rollout.context import NO_CONTEXT, Context, Memory
from sb3_policyopt.rollout.minibatches import GatheredRows, OwnSamples, RolloutData
from sb3_policyopt.rollout.sequenced_rows import SequencedRows
from sb3_policyopt.rollout.sequences import Sequences, from_padded
from sb3_policyopt.rollout.tensors.buffer import TensorRolloutBuffer, rows_of
from sb3_policyopt.rollout.transfer import to_host


class TorchModel(TensorModel):
    """
    The model for every policy that the closed form does not cover.

    :param policy: any SB3 actor-critic policy
    :param parameters: the trainable ones of actor and critic, see :func:`sb3_policyopt.models.split.split_parameters`
    :param micro_batch_size: most samples that go through the networks at once; the sums are the same to rounding, and
        memory is bounded by it. None for no bound
    :param channels_last: whether images may lie channels last in memory, see :func:`.channels_last.to_channels_last`
    :param flat: the flat vector of the parameters, if there is one already
    """

    name = "autograd"
    reaches_critic = False
    """Whether the actions depend on what a faster model takes for parameters of the critic alone."""

    def __init__(
        self,
        policy: ActorCriticPolicy,
        parameters: tuple[list[nn.Parameter], list[nn.Parameter]],
        micro_batch_size: int | None = None,
        channels_last: bool = False,
        flat: FlatParameters | None = None,
    ) -> None:
        super().__init__(policy, *parameters, flat=flat)
        self.micro_batch_size = micro_batch_size
        self.channels_last = channels_last
        self.structure = Structure((module, ()) for module in policy.modules())
        self._foreign: list[nn.Parameter] = []

    def serves(self) -> bool:
        """As the base class: the policy's modules and trainable parameters are the same objects."""
        trainable = {id(parameter) for parameter in self.policy.parameters() if parameter.requires_grad}
        known = {id(parameter) for parameter in self.flat.parameters}
        return trainable == known and self.structure.has_same_contents() and self.flat.is_of_same_kind() and self.flat.pull()

    # ------------------------------------------------------------------ rollout

    def start_rollout(self, n_steps: int, n_envs: int) -> None:
        """Nothing to prepare: the policy draws its own noise."""

    def decide(self, observations: Observations[th.Tensor], context: Context = NO_CONTEXT) -> TensorDecision:
        """The policy's own ``forward``."""
        with th.no_grad(), unvalidated():
            actions, values, log_prob, memory = policy_calls.act(self.policy, observations, context)
        return TensorDecision(actions, values.flatten(), log_prob.flatten(), memory)

    def values_of(self, observations: Observations[th.Tensor], context: Context = NO_CONTEXT) -> th.Tensor:
        """The policy's own ``predict_values``."""
        with th.no_grad():
            return policy_calls.step_values(self.policy, observations, context).flatten()

    def action_parameters(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> NumpyArray:
        """Of the policy's own distribution."""
        with th.no_grad(), unvalidated():
            tensors = obs_as_tensor(observations, self.policy.device)
            distribution = policy_calls.step_distribution(self.policy, tensors, context)
            columns = TorchFamily.parameters(torch_distributions(distribution))
        return to_host(th.cat([column.reshape(len(column), -1) for column in columns], 1))[0]

    # ------------------------------------------------------------------ update

    def data(self, buffer: RolloutBuffer, sequence_length: int | None = None) -> RolloutData[th.Tensor]:
        """One transfer a rollout, instead of one a minibatch; or what the buffer's own ``get`` yields."""
        if samples_itself(buffer):
            return OwnSamples(buffer, self.batch_of_samples)
        rollout = self.loaded(buffer)
        if kind_of(self.policy).memory:
            return SequencedRows(rollout, *memory_columns(buffer), buffer.buffer_size, sequence_length)
        return GatheredRows(rollout)

    def loaded(self, buffer: RolloutBuffer) -> Batch[th.Tensor]:
        """
        All transitions as tensors.

        :param buffer: a full rollout buffer
        :return: on the policy's device
        """
        rollout = self.to_tensors(rows_of(buffer) if isinstance(buffer, TensorRolloutBuffer) else flattened(buffer))
        if self.channels_last:
            rollout.observations = to_channels_last(rollout.observations)
        return rollout

    def batch_of_samples(self, samples: RolloutBufferSamples | DictRolloutBufferSamples) -> Batch[th.Tensor]:
        """
        SB3's samples as a batch.

        :param samples: of a buffer's ``get``; beyond SB3's six fields those of sb3-contrib's buffers are known, no others
        :return: tensors on the policy's device
        """
        batch, kind = Batch(*samples[:6]), kind_of(self.policy)
        masks: th.Tensor | None = getattr(samples, "action_masks", None)
        if kind.masks and masks is not None:
            batch.context["action_masks"] = masks.bool()
        batch = self.to_tensors(batch)
        if not kind.memory:
            return batch
        real = th.as_tensor(samples.mask > 1e-8)  # type: ignore[union-attr]  # sb3-contrib's samples, which are padded
        rows, (pi, vf) = real.nonzero().flatten(), samples.lstm_states  # type: ignore[union-attr]
        lengths = real.view(pi[0].shape[1], -1).sum(1).cpu().numpy()
        batch = batch.rows(rows)
        first = np.cumsum(lengths) - lengths
        begins = (samples.episode_starts > 0).flatten()[rows].cpu().numpy()[first]  # type: ignore[union-attr]
        kept = th.as_tensor(~begins, device=rows.device)[:, None]
        batch.sequences = Sequences(lengths, begins, Memory((pi[0] * kept, pi[1] * kept), (vf[0] * kept, vf[1] * kept)))
        return batch

    def to_tensors(self, batch: Batch[NumpyArray] | Batch[th.Tensor]) -> Batch[th.Tensor]:
        """
        Arrays to tensors on the policy's device, without a copy where that is possible.

        :param batch: arrays or tensors
        :return: the batch, with discrete actions as int64, those of one choice of shape (batch,)
        """

        def tensor(array: Array) -> th.Tensor:
            return th.as_tensor(array, device=self.policy.device)

        observations, actions = batch.observations, tensor(batch.actions)
        if isinstance(self.policy.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        elif isinstance(self.policy.action_space, spaces.MultiDiscrete) or kind_of(self.policy).masks:
            actions = actions.long()
        else:
            actions = actions.float()
        return Batch(
            {key: tensor(value) for key, value in observations.items()}
            if isinstance(observations, dict)
            else tensor(observations),
            actions,
            tensor(batch.old_values).flatten(),
            tensor(batch.old_log_prob).flatten(),
            tensor(batch.advantages).flatten(),
            tensor(batch.returns).flatten(),
            {name: tensor(column) for name, column in batch.context.items()},
            batch.sequences,
        )

    @contextmanager
    def updating(self, batch_size: int, critic_only: bool = False) -> Iterator[Optimiser]:
        """As the base class; the optimizer may have parameters that are not the policy's, which it steps too."""
        mine = {id(parameter) for parameter in self.policy.parameters()}
        groups = self.policy.optimizer.param_groups
        self._foreign = [p for group in groups for p in group["params"] if id(p) not in mine and p.requires_grad]
        with super().updating(batch_size, critic_only) as optimiser:
            yield optimiser

    def gradient(self, objective: Objective, batch: Batch[th.Tensor]) -> Terms:
        """
        ``optimizer.zero_grad()`` and ``loss.backward()``, as in SB3, then the gradients side by side in ``flat.gradient``.

        :param objective: its loss is asked for each piece of the batch
        :param batch: transitions
        :return: the terms
        """
        first = self.actor_count if objective.critic_only else 0  # those before get no gradient
        learners = [*self.flat.parameters[first:], *self._foreign]
        sums: list[th.Tensor | None] = [None] * len(learners)
        total: Terms = {}
        for piece, share in self.pieces(batch):
            with unvalidated():
                loss, terms = objective.loss(piece)
            self.policy.optimizer.zero_grad()  # what the hook did before, it did for itself
            if not loss.requires_grad and first < len(self.flat.parameters):
                raise ValueError(
                    f"{objective.name} depends on no parameter that is trained: its tensors were detached, or computed "
                    "without gradients (torch.no_grad). Compute it from the policy's outputs"
                )
            if loss.requires_grad and learners:
                th.autograd.backward(loss if share == 1 else loss * share, inputs=learners if first else None)
            accumulate(total, {objective.name: loss.detach(), **detached(terms)}, share)
            if share == 1:
                sums = [parameter.grad for parameter in learners]
            else:
                sums = [_plus(before, parameter.grad) for before, parameter in zip(sums, learners, strict=True)]
                for parameter in learners:
                    parameter.grad = None
        for parameter, gradient in zip(self._foreign, sums[len(sums) - len(self._foreign) :], strict=True):
            parameter.grad = gradient
        self.flat.gather(sums[: len(sums) - len(self._foreign)], range(first, len(self.flat.parameters)))
        return total

    # ------------------------------------------------------------------ the actor's Jacobian

    def actor_pass(self, batch: Batch[th.Tensor]) -> "TorchPass":
        """The policy's own ``get_distribution``."""
        self.flat.bring()
        with unvalidated(), _twice_differentiable(self.policy):
            distribution = policy_calls.get_distribution(self.policy, batch)
        return TorchPass(distribution, self.flat.parameters[: self.actor_count], batch.sequences)

    def surrogate_pass(self, hook: SurrogateHook, batch: Batch[th.Tensor]) -> tuple[float, th.Tensor, "TorchPass"]:
        """The gradient by autograd, through whatever the hook computes."""
        forward = self.actor_pass(batch)
        with unvalidated():
            objective = surrogate(hook, batch, policy_calls.log_prob(forward.distribution, batch))
        return objective.item(), surrogate_gradient(self.policy, self.flat, self.actor_count, objective), forward

    def surrogate_and_kl(
        self, hook: SurrogateHook, batch: Batch[th.Tensor], old: tuple[th.Tensor, ...]
    ) -> tuple[float, float]:
        """One forward pass without a graph."""
        self.flat.push()
        with th.no_grad(), unvalidated():
            forward = TorchPass(policy_calls.get_distribution(self.policy, batch), [], batch.sequences)
            objective = surrogate(hook, batch, policy_calls.log_prob(forward.distribution, batch))
            kl = forward.family.kl(old, forward.parameters).mean()
            objective_mean, kl_mean = th.stack((objective, kl)).tolist()
        return objective_mean, kl_mean


@contextmanager
def _twice_differentiable(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    A context for a forward pass that J v will be asked of: fused attention has no second derivative, nor have cuDNN's
    recurrent networks.

    :param policy: any SB3 actor-critic policy, or one of sb3-contrib's
    :return: a context in which torch computes attention from its parts, and a policy with memory on a GPU without cuDNN
    """
    without_cudnn = policy.device.type == "cuda" and kind_of(policy).memory
    with sdpa_kernel(SDPBackend.MATH), th.backends.cudnn.flags(enabled=False) if without_cudnn else nullcontext():
        yield


class TorchPass:
    """
    The Jacobian of a policy's action distribution, by torch.

    :param distribution: SB3's, of a batch, with its graph
    :param actor: the parameters that it depends on
    :param sequences: of the batch, where the distribution is of padded ones
    """

    def __init__(self, distribution: Distribution, actor: Sequence[nn.Parameter], sequences: Sequences | None = None) -> None:
        parts = torch_distributions(distribution)
        self.distribution = distribution
        self.family = TorchFamily(parts)
        self.parameters = TorchFamily.parameters(parts)
        if sequences is not None:
            self.parameters = tuple([from_padded(parameter, sequences) for parameter in self.parameters])
        self.actor = list(actor)
        self._outputs = [parameter for parameter in self.parameters if parameter.requires_grad]
        self._along: list[th.Tensor] = []
        self._transposed: th.Tensor | None = None

    def metric(self) -> Callable[[tuple[th.Tensor, ...]], tuple[th.Tensor, ...]]:
        """The second derivative of the KL."""
        with unvalidated():
            return self.family.metric_at(self.parameters)

    def pushforward(self, direction: th.Tensor) -> tuple[th.Tensor, ...]:
        """J v = ∂(vᵀJᵀu)/∂u, whatever u is: Jᵀu is linear in u. One graph serves all directions."""
        if self._transposed is None:
            self._along = [th.zeros_like(output, requires_grad=True) for output in self._outputs]
            self._transposed = self._pullback(self._along, create_graph=True)
        moved = iter(th.autograd.grad(self._transposed, self._along, direction, retain_graph=True, materialize_grads=True))
        return tuple(next(moved).detach() if p.requires_grad else th.zeros_like(p) for p in self.parameters)

    def pullback(self, slopes: tuple[th.Tensor, ...]) -> th.Tensor:
        """Jᵀ u by a backward pass."""
        needed = [u for u, p in zip(slopes, self.parameters, strict=True) if p.requires_grad]
        return self._pullback(needed).detach()  # zeros that torch 2.8 makes for unused parameters require gradients

    def _pullback(self, slopes: list[th.Tensor], create_graph: bool = False) -> th.Tensor:
        """
        Jᵀ u.

        :param slopes: u, one for each parameter with a graph
        :param create_graph: whether it will be differentiated with respect to u
        :return: shape (n_actor,)
        """
        gradients = th.autograd.grad(
            self._outputs, self.actor, slopes, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )
        return th.cat([gradient.reshape(-1) for gradient in gradients])


def surrogate_gradient(policy: ActorCriticPolicy, flat: FlatParameters, actor_count: int, objective: th.Tensor) -> th.Tensor:
    """
    ∇J with respect to the actor's parameters; the others must not have moved into the actor since the two were separated.

    :param policy: whose parameters are named in the error
    :param flat: its trainable parameters, the actor's first
    :param actor_count: number of the actor's
    :param objective: J of a batch, whose graph is kept
    :return: shape (n_actor,)
    :raises ValueError: if J depends on a parameter that the action distribution did not depend on
    """
    parameters = flat.parameters
    if actor_count == 0:
        return flat.vector[:0]
    if not objective.requires_grad:
        raise ValueError(
            "The surrogate depends on no parameter that is trained: its tensors were detached, or computed without gradients "
            "(torch.no_grad). Compute it from log_prob"
        )
    gradients = th.autograd.grad(objective, parameters, retain_graph=True, allow_unused=True)
    if any(gradient is not None for gradient in gradients[actor_count:]):
        names = {id(parameter): name for name, parameter in policy.named_parameters()}
        beyond = zip(parameters[actor_count:], gradients[actor_count:], strict=True)
        names_beyond = [names[id(p)] for p, g in beyond if g is not None]
        raise ValueError(
            f"The surrogate depends on {', '.join(names_beyond)}, on which the distribution of the actions does not depend. "
            "A policy update does not move it: compute the surrogate from log_prob. With a rollout buffer that makes its own "
            "samples, set model.engine_in_use = None when you change what actor and critic share"
        )
    pairs = zip(parameters[:actor_count], gradients[:actor_count], strict=True)
    return th.cat([(th.zeros_like(p) if g is None else g).reshape(-1) for p, g in pairs])


def _plus(a: th.Tensor | None, b: th.Tensor | None) -> th.Tensor | None:
    """
    A sum in which None counts for nothing.

    :param a: a tensor or None
    :param b: of the same shape, or None
    :return: None if both are
    """
    return b if a is None else a if b is None else a + b
