"""A model: how a policy's outputs, its Jacobian J and Jᵀ are computed. It knows no algorithm."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Generic, NamedTuple, TypeAlias

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_policyopt.distributions.table import is_masked
from sb3_policyopt.graphs import Recorder
from sb3_policyopt.maths.arrays import ArrayT, NumpyArray
from sb3_policyopt.maths.terms import Terms, accumulate
from sb3_policyopt.objectives.objective import Objective
from sb3_policyopt.objectives.outputs import Pass
from sb3_policyopt.objectives.trust_region import FisherProduct, SurrogateHook, fisher_product
from sb3_policyopt.optimisation.flat_parameters import FlatParameters
from sb3_policyopt.optimisation.optimiser import Optimiser
from sb3_policyopt.rollout.batch import Batch, Observations
from sb3_policyopt.rollout.context import NO_CONTEXT, Context, Memory
from sb3_policyopt.rollout.minibatches import RolloutData


class Decision(NamedTuple):
    """
    One step of all environments.

    :param actions: shape (n_envs, *action_shape)
    :param values: V(s), shape (n_envs,)
    :param log_prob: ln π(a|s), shape (n_envs,)
    :param memory: the states after the step; None for a policy without memory
    """

    actions: NumpyArray
    values: NumpyArray
    log_prob: NumpyArray
    memory: Memory | None = None


class TensorDecision(NamedTuple):
    """
    One step of all environments, on the policy's device.

    :param actions: shape (n_envs, *action_shape)
    :param values: V(s), shape (n_envs,)
    :param log_prob: ln π(a|s), shape (n_envs,)
    :param memory: the states after the step; None for a policy without memory
    """

    actions: th.Tensor
    values: th.Tensor
    log_prob: th.Tensor
    memory: Memory | None = None


class Model(ABC, Generic[ArrayT]):
    """
    Computes one policy.

    The policy's trainable parameters lie in one flat vector, the actor's first: ``actor_parameters`` is what the action
    distribution depends on (with everything that it shares with the critic), the rest moves the critic only.

    :param policy: whose numbers are computed
    :param actor: the parameters that the action distribution depends on
    :param critic: the parameters that only the value depends on
    :param flat: the flat vector of both, if there is one already
    """

    name: ClassVar[str]
    reason: str = ""
    """Why this model serves the policy, in words."""
    micro_batch_size: int | None = None
    """Most samples that go through the networks at once; the sums are the same to rounding. None for no bound."""
    recorder: Recorder | None = None
    """Of CUDA graphs; None where there are none."""

    def __init__(
        self,
        policy: ActorCriticPolicy,
        actor: list[nn.Parameter],
        critic: list[nn.Parameter],
        flat: FlatParameters | None = None,
    ) -> None:
        self.policy = policy
        self.flat = FlatParameters(actor + critic) if flat is None else flat
        self.actor_count = len(actor)
        self.n_actor = self.flat.offsets[len(actor)]
        self._optimisers: dict[int, Optimiser] = {}

    @property
    def actor_parameters(self) -> th.Tensor:
        """θ, the actor's stretch of the flat vector, shape (n_actor,); writing to it changes the policy."""
        return self.flat.vector[: self.n_actor]

    # ------------------------------------------------------------------ whether it serves

    @abstractmethod
    def serves(self) -> bool:
        """
        Whether the model is still right for its policy; asked before a rollout and before an update.

        :return: False once a module or a parameter was replaced, added, frozen or moved to another device
        """

    def fits(self) -> bool:
        """
        Whether the next action can be computed from what the model has read off the policy; asked before every step.

        :return: False if the model has to be chosen anew
        """
        return True

    # ------------------------------------------------------------------ rollout

    @abstractmethod
    def start_rollout(self, n_steps: int, n_envs: int) -> None:
        """
        Prepare to act, and draw what randomness can be drawn at once.

        :param n_steps: number of steps to come
        :param n_envs: number of environments
        """

    @abstractmethod
    def act(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> Decision:
        """
        Sample actions for one step of all environments.

        :param observations: as the VecEnv gives them, first axis n_envs
        :param context: masks and states, for a policy that takes them
        :return: actions, values, log-probabilities, and the states after the step
        """

    @abstractmethod
    def values(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> NumpyArray:
        """
        V(s).

        :param observations: as the VecEnv gives them, first axis n
        :param context: states, for a policy that takes them
        :return: float32, shape (n,)
        """

    def decide(self, observations: Observations[th.Tensor], context: Context = NO_CONTEXT) -> TensorDecision:
        """
        As :meth:`act`, for tensors. A model that computes with tensors does not wait for the device.

        :param observations: on the policy's device, first axis n_envs
        :param context: masks and states, for a policy that takes them
        :return: actions, values, log-probabilities, and the states after the step
        """
        actions, values, log_prob, memory = self.act(in_memory_of(observations), context)
        return TensorDecision(th.from_numpy(actions), th.from_numpy(values), th.from_numpy(log_prob), memory)

    def values_of(self, observations: Observations[th.Tensor], context: Context = NO_CONTEXT) -> th.Tensor:
        """
        As :meth:`values`, for tensors.

        :param observations: on the policy's device, first axis n
        :param context: states, for a policy that takes them
        :return: float32, shape (n,)
        """
        return th.from_numpy(self.values(in_memory_of(observations), context))

    def action_parameters(self, observations: Observations[NumpyArray], context: Context = NO_CONTEXT) -> NumpyArray | None:
        """
        What the action distributions are made of, for a look at them when no action can be drawn.

        :param observations: as the VecEnv gives them, first axis n_envs
        :param context: masks and states, for a policy that takes them
        :return: means and standard deviations, or logits, shape (n_envs, n); None if this model draws an action from anything
        """
        return None

    # ------------------------------------------------------------------ update

    @abstractmethod
    def data(self, buffer: RolloutBuffer, sequence_length: int | None = None) -> RolloutData[ArrayT]:
        """
        The whole rollout, moved into the model's arrays once.

        :param buffer: a full rollout buffer
        :param sequence_length: most rows of a sequence of a policy with memory, None for no limit
        :return: its transitions, those of the first environment first, as SB3's ``swap_and_flatten`` orders them
        :raises ValueError: if the buffer is not full
        """

    @abstractmethod
    def gradient(self, objective: Objective, batch: Batch[ArrayT]) -> Terms:
        """
        The gradient Jᵀ ∂(−L)/∂output of an objective's loss, left in ``flat.gradient``.

        :param objective: what is minimised; one without slopes is for models that use autograd
        :param batch: transitions
        :return: what to log, the loss under ``objective.name``
        """

    def over_pieces(
        self, gradient: Callable[[Objective, Batch[ArrayT]], Terms], objective: Objective, batch: Batch[ArrayT]
    ) -> Terms:
        """
        The gradient of a batch, by its pieces.

        :param gradient: leaves that of a piece in ``flat.gradient``
        :param objective: what is minimised
        :param batch: transitions
        :return: what to log
        """
        if self.micro_batch_size is None or batch.size <= self.micro_batch_size:
            return gradient(objective, batch)
        total: Terms = {}
        whole = th.zeros_like(self.flat.gradient)
        absent = set(range(len(self.flat.parameters)))
        for piece, share in self.pieces(batch):
            accumulate(total, gradient(objective, piece), share)
            whole.add_(self.flat.gradient, alpha=share)
            absent &= self.flat.absent
        self.flat.gradient.copy_(whole)
        self.flat.absent = absent
        return total

    @contextmanager
    def updating(self, batch_size: int, critic_only: bool = False) -> Iterator[Optimiser]:
        """
        Around a series of steps.

        :param batch_size: transitions a minibatch
        :param critic_only: True if only the critic's own parameters will be stepped
        :return: a context with the optimiser of these parameters
        """
        first = self.actor_count if critic_only else 0
        if first not in self._optimisers:
            self._optimisers[first] = self._make_optimiser(first)
        try:
            with self.threads(batch_size), self._optimisers[first].updating() as optimiser:
                yield optimiser
        finally:
            forget_distribution(self.policy)

    def _make_optimiser(self, first: int) -> Optimiser:
        """
        What steps a range of the parameters.

        :param first: number of the range's first parameter
        :return: the optimiser
        """
        return Optimiser(self.policy, self.flat, first)

    # ------------------------------------------------------------------ the actor's Jacobian

    def threads(self, rows: int) -> AbstractContextManager[None]:
        """
        Threads that suit the matrix products.

        :param rows: number of samples
        :return: a context
        """
        return nullcontext()

    def pieces(self, batch: Batch[ArrayT]) -> Iterator[tuple[Batch[ArrayT], float]]:
        """
        A batch in pieces that may go through the networks at once. None of them exceeds ``micro_batch_size``.

        :param batch: transitions
        :return: the pieces, each with its share of the batch, by which a mean over it counts
        """
        size = self.micro_batch_size or batch.size
        if size >= batch.size:
            yield batch, 1.0
            return
        for piece in batch.pieces(size):
            yield piece, piece.size / batch.size

    @abstractmethod
    def actor_pass(self, batch: Batch[ArrayT]) -> Pass[ArrayT]:
        """
        A forward pass of the actor, with its Jacobian.

        :param batch: transitions
        :return: the pass
        """

    def fisher_product(self, forward: Pass[ArrayT], batch: int) -> FisherProduct:
        """
        T5: v ↦ F v = Jᵀ M J v / batch.

        :param forward: of :meth:`actor_pass` or :meth:`surrogate_pass`
        :param batch: number of transitions in it
        :return: the function; it holds until the parameters change
        """
        return FisherProduct(fisher_product(forward, batch))

    @abstractmethod
    def surrogate_pass(self, hook: SurrogateHook, batch: Batch[ArrayT]) -> tuple[float, th.Tensor, Pass[ArrayT]]:
        """
        T1, T3: J and its gradient at the current parameters.

        :param hook: what J is
        :param batch: transitions
        :return: J; g of shape (n_actor,); the forward pass that they come from
        """

    @abstractmethod
    def surrogate_and_kl(self, hook: SurrogateHook, batch: Batch[ArrayT], old: tuple[ArrayT, ...]) -> tuple[float, float]:
        """
        T1, T2: J and the joint KL(π_old‖π_θ) at the current parameters, without a Jacobian.

        :param hook: what J is
        :param batch: transitions
        :param old: the parameters of π_old's action distributions
        :return: J, and the mean KL in nats
        """


AnyModel: TypeAlias = Model[Any]
"""A model with arrays of either library, as an algorithm holds it."""


def in_memory_of(observations: Observations[th.Tensor]) -> Observations[NumpyArray]:
    """
    Tensors on the CPU as arrays.

    :param observations: first axis n
    :return: the same memory
    """
    if isinstance(observations, dict):
        return {name: tensor.numpy() for name, tensor in observations.items()}
    return observations.numpy()


def forget_distribution(policy: ActorCriticPolicy) -> None:
    """
    Drop the last distribution of a policy: it would keep the last graph alive, and the policy could not be deep-copied.

    :param policy: any SB3 actor-critic policy
    """
    policy.action_dist.distribution = None  # type: ignore[assignment]  # SB3 declares no None
    if is_masked(policy.action_dist) and hasattr(policy.action_dist, "distributions"):
        policy.action_dist.distributions = []
