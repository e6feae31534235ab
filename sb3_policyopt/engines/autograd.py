"""Any SB3 policy on any device, by torch's automatic differentiation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import kl_divergence

from sb3_policyopt.engines.engine import Batch, Engine, Expansion, PPOCoefficients, Terms
from sb3_policyopt.engines.rollout_data import flattened

Array = NDArray[Any]


class Objectives(Protocol):
    """The hooks of the algorithms: what is optimised. A subclass of an algorithm may override any of them."""

    def loss(self, batch: Batch, coefficients: PPOCoefficients) -> tuple[th.Tensor, Terms]:
        """P5: −L, and the scalars to log."""

    def surrogate(self, batch: Batch, log_prob: th.Tensor) -> th.Tensor:
        """T1: J."""

    def value_loss(self, batch: Batch) -> tuple[th.Tensor, Terms]:
        """T10, and the scalars to log."""


class AutogradEngine(Engine):
    """
    The engine for every policy that the closed form does not cover.

    :param policy: any SB3 actor-critic policy
    :param objectives: the algorithm, whose hooks define what is optimised
    :param micro_batch_size: most samples that go through the networks at once; the sums are the same to rounding, and
        memory is bounded by it. None for no bound
    :param channels_last: whether images may lie channels last in memory, see :func:`lying_channels_last`
    """

    name = "autograd"

    def __init__(
        self,
        policy: ActorCriticPolicy,
        objectives: Objectives,
        micro_batch_size: int | None = None,
        channels_last: bool = False,
    ) -> None:
        actor, critic = split_parameters(policy)
        super().__init__(policy, actor, critic)
        self.objectives = objectives
        self.micro_batch_size = micro_batch_size
        self.channels_last = channels_last
        self.actor, self.critic = actor, critic

    # ------------------------------------------------------------------ rollout

    def start_rollout(self, n_steps: int, n_envs: int) -> None:
        """Nothing to prepare: the policy draws its own noise."""

    def act(self, observations: Any) -> tuple[Array, Array, Array]:
        """The policy's own ``forward``."""
        with th.no_grad(), unvalidated():
            actions, values, log_prob = self.policy(obs_as_tensor(observations, self.policy.device))
        return actions.cpu().numpy(), values.flatten().cpu().numpy(), log_prob.flatten().cpu().numpy()

    def action_parameters(self, observations: Any) -> Array:
        """
        What the action distributions are made of, for a look at them when no action can be drawn.

        :param observations: as the VecEnv gives them, first axis n_envs
        :return: means and standard deviations, or logits, shape (n_envs, n)
        """
        with th.no_grad(), unvalidated():
            distribution = self.policy.get_distribution(obs_as_tensor(observations, self.policy.device))
            parts = torch_distributions(distribution)
            columns = [getattr(part, name) for part in parts for name in parameter_names(part)]
        rows: Array = th.cat([column.reshape(len(column), -1) for column in columns], 1).cpu().numpy()
        return rows

    def value(self, observations: Any) -> Array:
        """The policy's own ``predict_values``."""
        with th.no_grad():
            values = self.policy.predict_values(obs_as_tensor(observations, self.policy.device))
        flat_values: Array = values.flatten().cpu().numpy()
        return flat_values

    # ------------------------------------------------------------------ update

    def load(self, buffer: RolloutBuffer) -> Batch:
        """One transfer a rollout, instead of one a minibatch."""
        rollout = self.to_tensors(flattened(buffer))
        if self.channels_last:
            rollout = rollout._replace(observations=lying_channels_last(rollout.observations))
        return rollout

    def to_tensors(self, batch: Any) -> Batch:
        """
        Arrays to tensors on the policy's device, without a copy where that is possible.

        :param batch: arrays or tensors in the order of :class:`Batch`, such as SB3's ``RolloutBufferSamples``
        :return: the batch, with discrete actions as int64, those of one choice of shape (batch,)
        """
        device = self.policy.device
        observations, actions, *rest = batch
        if isinstance(observations, dict):
            observations = {key: th.as_tensor(value, device=device) for key, value in observations.items()}
        else:
            observations = th.as_tensor(observations, device=device)
        actions = th.as_tensor(actions, device=device)
        if isinstance(self.policy.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        elif isinstance(self.policy.action_space, spaces.MultiDiscrete):
            actions = actions.long()
        else:
            actions = actions.float()
        return Batch(observations, actions, *(th.as_tensor(array, device=device).flatten() for array in rest))

    def _index(self, order: Array) -> th.Tensor:
        """Row numbers on the device, one transfer a pass."""
        return th.as_tensor(order, device=self.policy.device)

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """
        Cut a batch so that no piece exceeds ``micro_batch_size``.

        :param batch: transitions
        :return: the pieces, each with its share of the batch, by which a mean over it counts
        """
        size = self.micro_batch_size or batch.size
        if size >= batch.size:
            yield batch, 1.0
            return
        for start in range(0, batch.size, size):
            piece = batch.rows(slice(start, start + size))
            yield piece, piece.size / batch.size

    def ppo_gradient(self, minibatch: Batch, coefficients: PPOCoefficients) -> Terms:
        """Backward pass through the algorithm's ``loss`` hook."""
        self.flat.gradient.zero_()
        total: Terms = {}
        for piece, share in self._micro_batches(minibatch):
            with unvalidated():
                loss, terms = self.objectives.loss(piece, coefficients)
            (loss if share == 1 else loss * share).backward()  # type: ignore[no-untyped-call]
            _accumulate(total, {"loss": loss.detach(), **terms}, share)
        return total

    def value_gradient(self, minibatch: Batch) -> Terms:
        """Backward pass through the algorithm's ``value_loss`` hook, as far as the critic's own parameters."""
        self.flat.gradient[self.n_actor :].zero_()
        total: Terms = {}
        for piece, share in self._micro_batches(minibatch):
            loss, terms = self.objectives.value_loss(piece)
            (loss * share).backward(inputs=self.critic)  # type: ignore[no-untyped-call]
            _accumulate(total, terms, share)
        return total

    def expansion(self, rollout: Batch, thinning: int = 1) -> Expansion:
        """
        One forward and two backward passes for J, g and ∇KL, whose derivative is the Fisher matrix (T5, Pearlmutter 1994).
        """
        surrogate, gradient, kl_gradient = 0.0, th.zeros_like(self.actor_parameters), None
        whole = thinning == 1 and (self.micro_batch_size or rollout.size) >= rollout.size
        old: list[list[TorchDistribution]] = []
        for piece, share in self._micro_batches(rollout):
            with unvalidated():
                distribution = self.policy.get_distribution(piece.observations)
                parts = torch_distributions(distribution)
                old.append([detached(part) for part in parts])
                objective = self.objectives.surrogate(piece, distribution.log_prob(piece.actions)) * share
                if whole:
                    kl_gradient = self._actor_gradient(joint_kl(old[0], parts).mean(), create_graph=True)
            gradient += self._actor_gradient(objective, retain_graph=whole)
            surrogate += objective.item()
        thinned = rollout.rows(slice(None, None, thinning)) if thinning > 1 else rollout
        return Expansion(surrogate, gradient, _Fisher(self, thinned, kl_gradient), old)

    def _actor_gradient(self, scalar: th.Tensor, retain_graph: bool | None = None, create_graph: bool = False) -> th.Tensor:
        """
        The gradient with respect to the actor's parameters as one vector.

        :param scalar: what to differentiate
        :param retain_graph: whether the graph will be needed again
        :param create_graph: whether the gradient itself will be differentiated
        :return: shape (n_actor,)
        """
        gradients = th.autograd.grad(
            scalar, self.actor, retain_graph=retain_graph, create_graph=create_graph, materialize_grads=True
        )
        return th.cat([gradient.reshape(-1) for gradient in gradients])

    def kl_to_itself(self, batch: Batch) -> th.Tensor:
        """
        KL(π‖π_θ) with π = π_θ held constant: zero with zero gradient, and the Fisher matrix as Hessian (T4).

        :param batch: transitions
        :return: a scalar with a graph
        """
        with unvalidated():
            parts = torch_distributions(self.policy.get_distribution(batch.observations))
            return joint_kl([detached(part) for part in parts], parts).mean()

    def surrogate_and_kl(self, rollout: Batch, old: Any) -> tuple[float, float]:
        """One forward pass without a graph."""
        totals: Any = 0.0
        with th.no_grad(), unvalidated():
            for (piece, share), old_parts in zip(self._micro_batches(rollout), old, strict=True):
                distribution = self.policy.get_distribution(piece.observations)
                objective = self.objectives.surrogate(piece, distribution.log_prob(piece.actions))
                kl = joint_kl(old_parts, torch_distributions(distribution)).mean()
                totals = totals + share * th.stack((objective, kl))
        objective_mean, kl_mean = totals.tolist()
        return objective_mean, kl_mean


def lying_channels_last(observations: Any) -> Any:
    """
    The same images with the numbers of each pixel side by side in memory, which is how oneDNN's convolutions like them best.

    ``contiguous(memory_format=th.channels_last)`` would leave images of one channel as they are, and torch would then take
    the slow way through all layers.

    :param observations: a tensor, or a dict of tensors; those of shape (batch, channels, height, width) are images
    :return: of the same shape, or the same dict with such tensors
    """
    if isinstance(observations, dict):
        return {key: lying_channels_last(value) for key, value in observations.items()}
    if observations.dim() != 4:
        return observations
    _, channels, height, width = observations.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return observations.permute(0, 2, 3, 1).contiguous().as_strided(observations.shape, strides)


class _Fisher:
    """
    v ↦ F v, the derivative of (∇KL)ᵀv; with micro-batches the graph is built anew for each piece and product.

    :param engine: whose policy
    :param batch: transitions over which F is the mean
    :param kl_gradient: ∇KL of the batch with its graph, if there is one already
    """

    def __init__(self, engine: AutogradEngine, batch: Batch, kl_gradient: th.Tensor | None = None) -> None:
        self.engine = engine
        self.batch = batch
        fits = engine.micro_batch_size is None or engine.micro_batch_size >= batch.size
        self.kl_gradient = self._kl_gradient(batch) if kl_gradient is None and fits else kl_gradient

    def _kl_gradient(self, batch: Batch) -> th.Tensor:
        return self.engine._actor_gradient(self.engine.kl_to_itself(batch), create_graph=True)

    def __call__(self, vector: th.Tensor) -> th.Tensor:
        if self.kl_gradient is not None:
            return self.engine._actor_gradient(self.kl_gradient @ vector, retain_graph=True)
        product = th.zeros_like(vector)
        for piece, share in self.engine._micro_batches(self.batch):
            product += share * self.engine._actor_gradient(self._kl_gradient(piece) @ vector)
        return product


def split_parameters(policy: ActorCriticPolicy) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """
    Tell actor and critic apart by the autograd graph, never by name.

    :param policy: any SB3 actor-critic policy
    :return: the parameters that the action distribution depends on, shared ones among them; and all others, those that
        only the value or an overridden loss depends on. Frozen parameters are in no list
    """
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    # After all layers, where the closed form of the networks has it.
    trainable.sort(key=lambda parameter: parameter is getattr(policy, "log_std", None))
    was_training = policy.training
    policy.set_training_mode(False)
    try:
        with th.enable_grad(), unvalidated():
            observations = obs_as_tensor(_example(policy.observation_space), policy.device)
            distribution = policy.get_distribution(observations)
            log_prob = distribution.log_prob(distribution.mode())
            in_actor = _reached(log_prob.sum(), trainable)
    finally:
        policy.set_training_mode(was_training)
    actor = [parameter for parameter, used in zip(trainable, in_actor, strict=True) if used]
    critic = [parameter for parameter, used in zip(trainable, in_actor, strict=True) if not used]
    if not actor:
        raise ValueError("policy: its action distribution depends on no trainable parameter; is everything frozen?")
    return actor, critic


def _reached(scalar: th.Tensor, parameters: list[nn.Parameter]) -> list[bool]:
    """
    Which parameters a scalar depends on.

    :param scalar: the result of a computation
    :param parameters: candidates
    :return: True for each that the graph reaches
    """
    if not scalar.requires_grad:
        return [False] * len(parameters)
    gradients = th.autograd.grad(scalar, parameters, allow_unused=True)
    return [gradient is not None for gradient in gradients]


def _example(space: spaces.Space[Any]) -> Any:
    """
    Two observations of zeros, which cost no random number (two, as batch normalisation refuses one).

    :param space: any observation space of SB3
    :return: as a VecEnv of two environments would give them
    """
    if isinstance(space, spaces.Dict):
        return {key: _example(part) for key, part in space.spaces.items()}
    return np.zeros((2, *(space.shape or ())), dtype=space.dtype)


def torch_distributions(distribution: Distribution) -> list[TorchDistribution]:
    """
    What an SB3 distribution is made of; a squashed one has the KL of what it squashes, as tanh is a bijection.

    :param distribution: SB3's
    :return: independent torch distributions
    """
    inner = distribution.distribution
    return list(inner) if isinstance(inner, (list, tuple)) else [inner]


def detached(distribution: TorchDistribution) -> TorchDistribution:
    """
    The same distribution as a constant.

    :param distribution: torch's, of a family that is made from its constrained arguments
    :return: one without a graph
    """
    return type(distribution)(**{name: getattr(distribution, name).detach() for name in parameter_names(distribution)})


def parameter_names(distribution: TorchDistribution) -> list[str]:
    """
    The arguments that a distribution is made from.

    :param distribution: torch's
    :return: their names; "logits" where it could be made from "probs" too
    """
    return [
        name for name in distribution.arg_constraints if not (name == "probs" and "logits" in distribution.arg_constraints)
    ]


def joint_kl(old: list[TorchDistribution], new: list[TorchDistribution]) -> th.Tensor:
    """
    S2: KL(old‖new) of the whole action, summed over its independent dimensions.

    :param old: independent parts, batch shape (batch,) or (batch, n)
    :param new: the same for other parameters
    :return: shape (batch,)
    """
    parts = [kl_divergence(p, q) for p, q in zip(old, new, strict=True)]
    return th.stack([part.flatten(1).sum(1) if part.dim() > 1 else part for part in parts]).sum(0)


@contextmanager
def unvalidated() -> Iterator[None]:
    """Torch distributions without argument checks, each of which would wait for the device; our own guards name the cause."""
    before = TorchDistribution._validate_args
    TorchDistribution.set_default_validate_args(False)
    try:
        yield
    finally:
        TorchDistribution.set_default_validate_args(before)


def _accumulate(total: Terms, terms: Terms, share: float) -> None:
    """
    Add the terms of a piece to those of its batch.

    :param total: changed in place; means count by their share, names ending in ``_max`` keep the largest
    :param terms: of one piece
    :param share: the piece's share of the batch
    """
    for name, value in terms.items():
        if share == 1:
            total[name] = value
        elif name.endswith("_max"):
            total[name] = th.maximum(total[name], value) if name in total else value
        else:
            total[name] = total.get(name, 0.0) + share * value
