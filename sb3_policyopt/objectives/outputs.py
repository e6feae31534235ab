"""What passes between a model and an objective: a network's outputs, and the slopes of a scalar with respect to them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol

import torch as th

from sb3_policyopt.distributions.family import ActionDistribution
from sb3_policyopt.maths.arrays import ArrayT


@dataclass(slots=True)
class Outputs(Generic[ArrayT]):
    """
    Actor and critic on a batch.

    :param family: of the action distributions
    :param parameters: the distributions', see :mod:`sb3_policyopt.distributions.family`; empty for the critic alone
    :param values: V(s), shape (batch,)
    """

    family: ActionDistribution
    parameters: tuple[ArrayT, ...]
    values: ArrayT


@dataclass(slots=True)
class Slopes(Generic[ArrayT]):
    """
    The derivative of a scalar with respect to :class:`Outputs`.

    :param parameters: broadcastable to (batch, n) each; empty if the scalar does not depend on the actor
    :param values: shape (batch,); None if it does not depend on the critic
    """

    parameters: tuple[ArrayT, ...] = ()
    values: ArrayT | None = None


class Pass(Protocol[ArrayT]):
    """A forward pass of the actor, with its Jacobian J. It holds until the model's parameters change."""

    @property
    def parameters(self) -> tuple[ArrayT, ...]:
        """Of the action distributions."""

    def metric(self) -> Callable[[tuple[ArrayT, ...]], tuple[ArrayT, ...]]:
        """T5: u ↦ M u, the Fisher information of the distributions' parameters, state by state."""

    def pushforward(self, direction: th.Tensor) -> tuple[ArrayT, ...]:
        """J v: how the distributions' parameters move along v of shape (n_actor,)."""

    def pullback(self, slopes: tuple[ArrayT, ...]) -> th.Tensor:
        """Jᵀ u: the gradient, shape (n_actor,), of what has the slopes u, broadcastable to (batch, n) each."""
