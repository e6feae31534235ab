"""Any SB3 policy on any device, by torch's automatic differentiation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn
from torch.distributions import Distribution as TorchDistribution

from sb3_policyopt.distributions.torch_parts import detached, joint_kl, parameter_names, torch_distributions, unvalidated
from sb3_policyopt.identity.structure import Structure
from sb3_policyopt.models.model import Batch, Engine, Expansion, PPOCoefficients, Terms
from sb3_policyopt.rollout.buffers import flattened

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
    :param parameters: the trainable ones, see :func:`split_parameters`
    :param micro_batch_size: most samples that go through the networks at once; the sums are the same to rounding, and
        memory is bounded by it. None for no bound
    :param channels_last: whether images may lie channels last in memory, see :func:`lying_channels_last`
    """

    name = "autograd"

    def __init__(
        self,
        policy: ActorCriticPolicy,
        objectives: Objectives,
        parameters: tuple[list[nn.Parameter], list[nn.Parameter]],
        micro_batch_size: int | None = None,
        channels_last: bool = False,
    ) -> None:
        self.actor, self.critic = parameters
        super().__init__(policy, self.actor, self.critic)
        self.objectives = objectives
        self.micro_batch_size = micro_batch_size
        self.channels_last = channels_last
        self.structure = Structure((module, ()) for module in policy.modules())
        self._gradient_places = self.flat.places(self.flat.gradient)
        self._foreign: list[nn.Parameter] = []

    def serves(self) -> bool:
        """As the base class: the policy's modules and trainable parameters are the same objects."""
        trainable = {id(parameter) for parameter in self.policy.parameters() if parameter.requires_grad}
        known = {id(parameter) for parameter in self.flat.parameters}
        return trainable == known and self.structure.has_same_contents() and self.flat.is_of_same_kind()

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

    @contextmanager
    def updating(self, batch_size: int, critic_only: bool = False) -> Iterator[None]:
        """As the base class; the optimizer may have parameters that are not the policy's, which it steps too."""
        mine = {id(parameter) for parameter in self.policy.parameters()}
        groups = self.policy.optimizer.param_groups
        self._foreign = [p for group in groups for p in group["params"] if id(p) not in mine and p.requires_grad]
        with super().updating(batch_size, critic_only):
            yield

    def ppo_gradient(self, minibatch: Batch, coefficients: PPOCoefficients) -> Terms:
        """Backward pass through the algorithm's ``loss`` hook."""

        def loss_and_terms(piece: Batch) -> tuple[th.Tensor, Terms]:
            loss, terms = self.objectives.loss(piece, coefficients)
            return loss, {"loss": loss.detach(), **terms}

        return self._backward(minibatch, loss_and_terms, 0)

    def value_gradient(self, minibatch: Batch) -> Terms:
        """Backward pass through the algorithm's ``value_loss`` hook, as far as the critic's own parameters."""
        return self._backward(minibatch, self.objectives.value_loss, len(self.actor))

    def _backward(self, minibatch: Batch, objective: Callable[[Batch], tuple[th.Tensor, Terms]], first: int) -> Terms:
        """
        ``optimizer.zero_grad()`` and ``loss.backward()``, as in SB3, then the gradients side by side in ``flat.gradient``.

        :param minibatch: transitions
        :param objective: gives the loss of a piece and what to log
        :param first: number of the first parameter that learns; those before get no gradient
        :return: the terms
        """
        learners = [*self.flat.parameters[first:], *self._foreign]
        sums: list[th.Tensor | None] = [None] * len(learners)
        total: Terms = {}
        for piece, share in self._micro_batches(minibatch):
            with unvalidated():
                loss, terms = objective(piece)
            self.policy.optimizer.zero_grad()  # what the hook did before, it did for itself
            if loss.requires_grad and learners:
                inputs = learners if first else None
                (loss if share == 1 else loss * share).backward(inputs=inputs)  # type: ignore[no-untyped-call]
            _accumulate(total, terms, share)
            if share == 1:
                sums = [parameter.grad for parameter in learners]
            else:
                sums = [_plus(before, parameter.grad) for before, parameter in zip(sums, learners, strict=True)]
                for parameter in learners:
                    parameter.grad = None
        for parameter, gradient in zip(self._foreign, sums[len(sums) - len(self._foreign) :], strict=True):
            parameter.grad = gradient
        self._gather(sums[: len(sums) - len(self._foreign)], range(first, len(self.flat.parameters)))
        return total

    def _gather(self, gradients: Sequence[th.Tensor | None], numbers: Sequence[int]) -> None:
        """
        Lay gradients side by side in ``flat.gradient``.

        :param gradients: of some parameters; None where the loss does not depend on one
        :param numbers: of these parameters
        """
        self._without_gradient.clear()
        self._moments_checked = False  # a hook or a features extractor ran
        with th.no_grad():
            for i, gradient in zip(numbers, gradients, strict=True):
                if gradient is None:
                    self._without_gradient.add(i)
                    self._gradient_places[i].zero_()
                else:
                    self._gradient_places[i].copy_(gradient.to_dense() if gradient.is_sparse else gradient)

    def expansion(self, rollout: Batch, thinning: int = 1) -> Expansion:
        """
        One forward and two backward passes for J, g and ∇KL, whose derivative is the Fisher matrix (T5, Pearlmutter 1994).
        """
        self._bring_parameters()
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
            gradient += self._surrogate_gradient(objective, retain_graph=whole)
            surrogate += objective.item()
        thinned = rollout.rows(slice(None, None, thinning)) if thinning > 1 else rollout
        return Expansion(surrogate, gradient, _Fisher(self, thinned, kl_gradient), old)

    def _surrogate_gradient(self, objective: th.Tensor, retain_graph: bool) -> th.Tensor:
        """
        ∇J with respect to the actor's parameters; the others must not have moved into the actor since they were told apart.

        :param objective: J of a batch
        :param retain_graph: whether the graph will be needed again
        :return: shape (n_actor,)
        :raises ValueError: if J depends on a parameter that the action distribution did not depend on
        """
        if not objective.requires_grad:
            return th.zeros_like(self.actor_parameters)
        parameters = self.flat.parameters
        gradients = th.autograd.grad(objective, parameters, retain_graph=retain_graph, allow_unused=True)
        n = len(self.actor)
        if any(gradient is not None for gradient in gradients[n:]):
            names = {id(parameter): name for name, parameter in self.policy.named_parameters()}
            strangers = [names[id(p)] for p, g in zip(parameters[n:], gradients[n:], strict=True) if g is not None]
            raise ValueError(
                f"The surrogate depends on {', '.join(strangers)}, on which the action distribution did not depend when the "
                "actor's parameters were told from the critic's. If the policy changes what it shares between rollouts, set "
                "model.engine_in_use = None when it does"
            )
        return th.cat(
            [(th.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(parameters[:n], gradients[:n], strict=True)]
        )

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
        self.flat.push()
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


def _plus(a: th.Tensor | None, b: th.Tensor | None) -> th.Tensor | None:
    """
    A sum in which None counts for nothing.

    :param a: a tensor or None
    :param b: of the same shape, or None
    :return: None if both are
    """
    return b if a is None else a if b is None else a + b
