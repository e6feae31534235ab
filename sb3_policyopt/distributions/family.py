"""
S2, T5, P3: families of action distributions as functions of their parameters.

A distribution's parameters are a tuple of arrays: what the actor network puts out for a batch, (batch, n), and where the
family has state-independent parameters these too, (n,). A tangent or a gradient is a tuple of the same length; its entries
have the shape (batch, n), one row a sample, also for the state-independent parameters.

Everything is summed over independent action dimensions, so log-probability, entropy and KL are those of the joint action.
The functions serve torch tensors and NumPy arrays alike.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic

import numpy as np
import torch as th

from sb3_policyopt.maths.arrays import ArrayT, NumpyArray, Scalar, mean


@dataclass(slots=True)
class Evaluation(Generic[ArrayT]):
    """
    A minibatch under the current distributions.

    :param log_prob: ln π(a|s), shape (batch,)
    :param score: ∂ln π/∂parameters, shape (batch, n) each
    :param mean_entropy: L_ENT = E[H], a scalar
    :param entropy_gradient: ∂H/∂parameters, broadcastable to (batch, n) each; empty if not asked for
    """

    log_prob: ArrayT
    score: tuple[ArrayT, ...]
    mean_entropy: Scalar
    entropy_gradient: tuple[ArrayT, ...]


class ActionDistribution(ABC):
    """A family of distributions over actions. ``output_dim`` is the width n of the actor network's output."""

    output_dim: int
    free: ClassVar[tuple[str, ...]] = ()
    """State-independent parameters, by the policy's attribute that holds them; each has the shape (output_dim,)."""

    def sampler(self, n_steps: int, n_envs: int) -> "Sampler":
        """
        What draws the actions of a rollout. The noise of all steps is drawn here, from torch's global generator.

        :param n_steps: number of steps to come
        :param n_envs: number of environments
        :return: a sampler for so many steps
        """
        return Sampler(self, self.rollout_noise(n_steps, n_envs))

    def rollout_noise(self, n_steps: int, n_envs: int) -> NumpyArray:
        """
        The noise of a whole rollout, from torch's global generator.

        :param n_steps: number of steps to come
        :param n_envs: number of environments
        :return: float32, shape (n_steps, n_envs, output_dim)
        """
        shape, tiny = (n_steps, n_envs, self.output_dim), float(np.finfo(np.float32).tiny)
        return self.noise(
            lambda: th.rand(shape, dtype=th.float32).clamp_(min=tiny).numpy(),
            lambda: th.randn(shape, dtype=th.float32).numpy(),
        )

    @abstractmethod
    def sample(self, parameters: tuple[ArrayT, ...], noise: ArrayT) -> ArrayT:
        """
        Draw actions by transforming noise that does not depend on the parameters.

        :param parameters: the distributions of a batch
        :param noise: see :meth:`noise`, shape (batch, n)
        :return: actions, shape (batch, n_actions)
        """

    @abstractmethod
    def noise(self, uniform: Callable[[], ArrayT], normal: Callable[[], ArrayT]) -> ArrayT:
        """
        The noise that :meth:`sample` transforms, made from standard draws.

        :param uniform: () ↦ uniform draws in (0, 1), any shape
        :param normal: () ↦ standard normal draws, the same shape
        :return: the same shape
        """

    @abstractmethod
    def log_prob(self, parameters: tuple[ArrayT, ...], actions: ArrayT) -> ArrayT:
        """
        ln π(a|s).

        :param parameters: the distributions of a batch
        :param actions: shape (batch, n_actions)
        :return: shape (batch,)
        """

    def sample_and_log_prob(self, parameters: tuple[ArrayT, ...], noise: ArrayT) -> tuple[ArrayT, ArrayT]:
        """
        Draw actions, with their log-probabilities.

        :param parameters: the distributions of a batch
        :param noise: see :meth:`noise`, shape (batch, n)
        :return: actions, shape (batch, n_actions); ln π(a|s), shape (batch,)
        """
        actions = self.sample(parameters, noise)
        return actions, self.log_prob(parameters, actions)

    @abstractmethod
    def log_prob_and_score(self, parameters: tuple[ArrayT, ...], actions: ArrayT) -> tuple[ArrayT, tuple[ArrayT, ...]]:
        """
        ln π(a|s) and its gradient with respect to the parameters, which has mean zero under π (T4).

        :param parameters: the distributions of a batch
        :param actions: shape (batch, n_actions)
        :return: shape (batch,), and per-sample gradients, shape (batch, n) each
        """

    @abstractmethod
    def entropy(self, parameters: tuple[ArrayT, ...]) -> ArrayT:
        """
        P3: H = −E_a[ln π(a|s)] in nats.

        :param parameters: the distributions of a batch
        :return: shape (batch,)
        """

    @abstractmethod
    def entropy_gradient(self, parameters: tuple[ArrayT, ...]) -> tuple[ArrayT, ...]:
        """
        ∂H/∂parameters, which equals −E_a[(1 + ln π) ∂ln π].

        :param parameters: the distributions of a batch
        :return: per-sample gradients, broadcastable to (batch, n) each
        """

    def evaluate(self, parameters: tuple[ArrayT, ...], actions: ArrayT, entropy_gradient: bool) -> Evaluation[ArrayT]:
        """
        All that P5 needs to know of a minibatch, sharing what its parts have in common.

        :param parameters: the distributions of a batch
        :param actions: shape (batch, n_actions)
        :param entropy_gradient: whether it is wanted
        :return: log-probabilities, scores, the mean entropy and the entropies' gradients
        """
        log_prob, score = self.log_prob_and_score(parameters, actions)
        gradient = self.entropy_gradient(parameters) if entropy_gradient else ()
        return Evaluation(log_prob, score, self.mean_entropy(parameters), gradient)

    def mean_entropy(self, parameters: tuple[ArrayT, ...]) -> Scalar:
        """
        P3: L_ENT = E_s[H].

        :param parameters: the distributions of a batch
        :return: a scalar
        """
        return mean(self.entropy(parameters))

    @abstractmethod
    def kl(self, old: tuple[ArrayT, ...], new: tuple[ArrayT, ...]) -> ArrayT:
        """
        S2: D(π_old‖π_new) = E_{a∼π_old}[ln π_old − ln π_new] in nats.

        :param old: the distributions of a batch
        :param new: others for the same states
        :return: shape (batch,)
        """

    @abstractmethod
    def fisher_metric(self, parameters: tuple[ArrayT, ...], tangent: tuple[ArrayT, ...]) -> tuple[ArrayT, ...]:
        """
        T5: M u, where M = E[score scoreᵀ] is the Fisher information of the parameters themselves, one block a state.

        :param parameters: the distributions of a batch
        :param tangent: u, a direction in parameter space, broadcastable to (batch, n) each
        :return: M u, broadcastable to (batch, n) each
        """


class Sampler:
    """
    Draws the actions of one rollout, step by step.

    :param family: of the distributions
    :param noise: of all steps, shape (n_steps, n_envs, n)
    """

    def __init__(self, family: ActionDistribution, noise: NumpyArray) -> None:
        self.family = family
        self.noise = noise
        self.next_step = 0

    @property
    def is_used_up(self) -> bool:
        """Whether all of the noise has been used."""
        return self.next_step == len(self.noise)

    def draw(self, parameters: tuple[NumpyArray, ...]) -> tuple[NumpyArray, NumpyArray]:
        """
        Draw actions with the noise of the next step.

        :param parameters: the distributions of all environments
        :return: actions, shape (n_envs, n_actions); ln π(a|s), shape (n_envs,)
        """
        noise = self.noise[self.next_step]
        self.next_step += 1
        return self.family.sample_and_log_prob(parameters, noise)
