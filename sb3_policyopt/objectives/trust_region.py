"""
T1-T5: the surrogate with its trust region at θ_old, for any model.

    g   = Jᵀ ∂J/∂output                       T3
    F v = Jᵀ M J v                            T5, M the metric of the action distribution
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Generic, Protocol

import numpy as np
import torch as th

from sb3_policyopt.maths import losses
from sb3_policyopt.maths.arrays import ArrayT, Scalar
from sb3_policyopt.maths.conjugate_gradient import ConjugateGradientResult, conjugate_gradient
from sb3_policyopt.maths.terms import Terms, value_of
from sb3_policyopt.objectives.objective import slopes_of
from sb3_policyopt.objectives.outputs import Outputs, Pass, Slopes
from sb3_policyopt.rollout.batch import Batch, of_features


class SurrogateHook(Protocol):
    """(batch, ln π) ↦ J, as :meth:`sb3_policyopt.TRPO.surrogate`."""

    def __call__(self, batch: Batch[th.Tensor], log_prob: th.Tensor) -> th.Tensor:
        """J, a scalar to maximise."""


def surrogate_slopes(outputs: Outputs[ArrayT], batch: Batch[ArrayT]) -> tuple[Slopes[ArrayT], Terms]:
    """
    T1, T3: ∂J/∂parameters of the action distributions, and J.

    :param outputs: of the actor
    :param batch: transitions
    :return: the slopes, and J under "surrogate"
    """
    log_prob, score = outputs.family.log_prob_and_score(outputs.parameters, batch.actions)
    ratio = losses.probability_ratio(log_prob, batch.old_log_prob)
    slope = losses.surrogate_slope(ratio, batch.advantages)
    return Slopes(tuple([slope[:, None] * part for part in score])), {"surrogate": losses.surrogate(ratio, batch.advantages)}


def surrogate_value(hook: SurrogateHook, outputs: Outputs[ArrayT], batch: Batch[ArrayT]) -> Scalar:
    """
    T1: J, without its slopes where that is cheaper.

    :param hook: what J is, one with a closed form
    :param outputs: of the actor
    :param batch: transitions
    :return: J
    """
    slopes = slopes_of(hook)
    if slopes is not surrogate_slopes and slopes is not None:
        return value_of(slopes(outputs, batch)[1]["surrogate"])
    ratio = losses.probability_ratio(outputs.family.log_prob(outputs.parameters, batch.actions), batch.old_log_prob)
    return losses.surrogate(ratio, batch.advantages)


def surrogate_and_kl(
    hook: SurrogateHook, outputs: Outputs[th.Tensor], batch: Batch[th.Tensor], old: tuple[th.Tensor, ...]
) -> tuple[float, float]:
    """
    T1, T2: J and the mean KL(old‖π_θ), with one wait for the device.

    :param hook: what J is, one with a closed form
    :param outputs: of the actor
    :param batch: transitions
    :param old: the parameters of π_old's action distributions
    :return: J, and the mean KL in nats
    """
    surrogate = surrogate_value(hook, outputs, of_features(batch))
    kl = outputs.family.kl(old, outputs.parameters).mean()
    objective_mean, kl_mean = th.stack((th.as_tensor(surrogate), kl)).tolist()
    return objective_mean, kl_mean


class Actor(Protocol[ArrayT]):
    """What a trust region needs of a model."""

    @property
    def actor_parameters(self) -> th.Tensor:
        """θ of the actor, shape (n_actor,); writing to it changes the policy."""

    def threads(self, rows: int) -> AbstractContextManager[None]:
        """Threads that suit so many rows."""

    def pieces(self, batch: Batch[ArrayT]) -> Iterator[tuple[Batch[ArrayT], float]]:
        """The batch in pieces that may go through the network at once, each with its share of the batch."""

    def surrogate_pass(self, hook: SurrogateHook, batch: Batch[ArrayT]) -> tuple[float, th.Tensor, Pass[ArrayT]]:
        """J, g of shape (n_actor,), and the forward pass that they come from."""

    def actor_pass(self, batch: Batch[ArrayT]) -> Pass[ArrayT]:
        """A forward pass of the actor, with its Jacobian."""

    def fisher_product(self, forward: Pass[ArrayT], batch: int) -> "FisherProduct":
        """T5: v ↦ F v of a forward pass over so many transitions."""

    def surrogate_and_kl(self, hook: SurrogateHook, batch: Batch[ArrayT], old: tuple[ArrayT, ...]) -> tuple[float, float]:
        """J and the mean KL(old‖π_θ) at the current parameters, without a Jacobian."""


class TrustRegion(ABC):
    """
    The problem of T6 at θ_old: maximise gᵀΔ subject to ½ΔᵀFΔ ≤ δ.

    :param surrogate: J(θ_old)
    :param gradient: g, shape (n_actor,)
    :param size: number of transitions
    :param fisher_size: number of those that the Fisher matrix is the mean over
    """

    surrogate: float
    gradient: th.Tensor
    size: int
    fisher_size: int

    @abstractmethod
    def fisher(self, vector: th.Tensor) -> th.Tensor:
        """
        T5: v ↦ F v, undamped; valid until the parameters change.

        :param vector: v, shape (n_actor,)
        :return: shape (n_actor,)
        """

    def solve(self, max_iterations: int, damping: float) -> ConjugateGradientResult[th.Tensor]:
        """
        T7: (F + λI) x = g.

        :param max_iterations: Fisher-vector products to spend
        :param damping: λ ≥ 0
        :return: x, and how it was found
        """
        return conjugate_gradient(self.fisher, self.gradient, max_iterations, damping=damping)

    @abstractmethod
    def evaluate(self) -> tuple[float, float]:
        """
        T1, T2: J and the joint KL(π_old‖π_θ) at the current parameters.

        :return: J, and the KL in nats
        """


class LocalTrustRegion(TrustRegion, Generic[ArrayT]):
    """
    The trust region of one process's transitions.

    :param actor: computes the passes
    :param batch: transitions
    :param hook: what J is
    :param thinning: use every n-th transition, or sequence, for the Fisher matrix, and only for it
    """

    def __init__(self, actor: Actor[ArrayT], batch: Batch[ArrayT], hook: SurrogateHook, thinning: int = 1) -> None:
        self.actor: Actor[ArrayT] = actor
        self.batch: Batch[ArrayT] = batch
        self.hook = hook
        self.thinned: Batch[ArrayT] = batch.thinned(thinning)
        self.size, self.fisher_size = batch.size, self.thinned.size
        self.old: list[tuple[ArrayT, ...]] = []
        self.surrogate, self.gradient = 0.0, th.zeros_like(actor.actor_parameters)
        last: Pass[ArrayT] | None = None
        with actor.threads(batch.size):
            for piece, share in actor.pieces(batch):
                last = None  # with its graph: there is one at a time
                surrogate, gradient, last = actor.surrogate_pass(hook, piece)
                self.surrogate += share * surrogate
                self.gradient += share * gradient
                self.old.append(tuple(kept(parameter) for parameter in last.parameters))
            in_one = last is not None and len(self.old) == 1
            if in_one and thinning > 1:
                last = actor.actor_pass(self.thinned)
            self._product = actor.fisher_product(last, self.thinned.size) if in_one and last is not None else None

    def fisher(self, vector: th.Tensor) -> th.Tensor:
        """F v = Jᵀ M J v / batch; of several pieces the mean, each with a forward pass of its own."""
        with self.actor.threads(self.thinned.size):
            if self._product is not None:
                return self._product(vector)
            product = th.zeros_like(vector)
            for piece, share in self.actor.pieces(self.thinned):
                product += share * self.actor.fisher_product(self.actor.actor_pass(piece), piece.size)(vector)
            return product

    def solve(self, max_iterations: int, damping: float) -> ConjugateGradientResult[th.Tensor]:
        """As the base class; by the product's own method if ``fisher`` is the one above."""
        is_own = type(self).fisher is LocalTrustRegion.fisher and "fisher" not in vars(self)
        if self._product is None or not is_own:
            return super().solve(max_iterations, damping)
        with self.actor.threads(self.thinned.size):
            return self._product.solve(self.gradient, max_iterations, damping)

    def evaluate(self) -> tuple[float, float]:
        """One forward pass of the actor."""
        surrogate = kl = 0.0
        with self.actor.threads(self.batch.size):
            for (piece, share), old in zip(self.actor.pieces(self.batch), self.old, strict=True):
                of_piece = self.actor.surrogate_and_kl(self.hook, piece, old)
                surrogate, kl = surrogate + share * of_piece[0], kl + share * of_piece[1]
        return surrogate, kl


class FisherProduct:
    """
    T5: v ↦ F v at one θ.

    :param product: computes it
    """

    def __init__(self, product: Callable[[th.Tensor], th.Tensor]) -> None:
        self.product = product

    def __call__(self, vector: th.Tensor) -> th.Tensor:
        """
        F v.

        :param vector: v, shape (n_actor,)
        :return: shape (n_actor,)
        """
        return self.product(vector)

    def solve(self, b: th.Tensor, max_iterations: int, damping: float) -> ConjugateGradientResult[th.Tensor]:
        """
        T7: (F + λI) x = b.

        :param b: shape (n_actor,)
        :param max_iterations: products to spend
        :param damping: λ ≥ 0
        :return: x, and how it was found
        """
        return conjugate_gradient(self.product, b, max_iterations, damping=damping)


def fisher_product(forward: Pass[ArrayT], batch: int) -> Callable[[th.Tensor], th.Tensor]:
    """
    T5: v ↦ Jᵀ M J v / batch.

    :param forward: of the actor, with its Jacobian
    :param batch: number of transitions
    :return: the function
    """
    metric = forward.metric()
    return lambda vector: forward.pullback(tuple([part / batch for part in metric(forward.pushforward(vector))]))


def kept(parameter: ArrayT) -> ArrayT:
    """
    A distribution's parameter as it is now, whatever becomes of the memory or the graph that it is part of.

    :param parameter: of the distributions
    :return: its numbers
    """
    return parameter.copy("K") if isinstance(parameter, np.ndarray) else parameter.detach().clone()
