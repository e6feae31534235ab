"""One choice among several actions."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sb3_policyopt.distributions.family import ActionDistribution, Evaluation
from sb3_policyopt.maths.arrays import ArrayT, indices, log_sum_exp, mean, namespace, raise_to, row_sums

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Categorical(ActionDistribution):
    """
    One of n actions: parameters (logits (batch, n),).

    :param output_dim: number n of actions
    """

    output_dim: int

    def noise(self, uniform: Callable[[], ArrayT], normal: Callable[[], ArrayT]) -> ArrayT:
        """Standard Gumbel: −ln(−ln u)."""
        u = uniform()
        xp = namespace(u)
        return -xp.log(-xp.log(u))

    def sample(self, parameters: tuple[ArrayT, ...], noise: ArrayT) -> ArrayT:
        """The action with the largest logit + Gumbel noise."""
        return (parameters[0] + noise).argmax(1)[:, None]

    def log_prob(self, parameters: tuple[ArrayT, ...], actions: ArrayT) -> ArrayT:
        """The action's logit, less ln Σ e^logit."""
        (logits,) = parameters
        return _chosen(logits, actions) - log_sum_exp(logits)

    def log_prob_and_score(self, parameters: tuple[ArrayT, ...], actions: ArrayT) -> tuple[ArrayT, tuple[ArrayT, ...]]:
        """The score is e_a − p."""
        log_p = log_softmax(parameters[0])
        score = -namespace(log_p).exp(log_p)
        score += _one_hot(actions, log_p)
        return _chosen(log_p, actions), (score,)

    def entropy(self, parameters: tuple[ArrayT, ...]) -> ArrayT:
        """H = −Σ p ln p."""
        log_p = log_softmax(parameters[0])
        return -row_sums(namespace(log_p).exp(log_p) * log_p)

    def entropy_gradient(self, parameters: tuple[ArrayT, ...]) -> tuple[ArrayT, ...]:
        """−p (ln p + H)."""
        log_p = log_softmax(parameters[0])
        p = namespace(log_p).exp(log_p)
        return (-p * (log_p - row_sums(p * log_p)[:, None]),)

    def evaluate(self, parameters: tuple[ArrayT, ...], actions: ArrayT, entropy_gradient: bool) -> Evaluation[ArrayT]:
        """One softmax for all."""
        log_p = log_softmax(parameters[0])
        p = namespace(log_p).exp(log_p)
        entropy = -row_sums(p * log_p)
        gradient = (-p * (log_p + entropy[:, None]),) if entropy_gradient else ()
        score = -p
        score += _one_hot(actions, log_p)
        return Evaluation(_chosen(log_p, actions), (score,), mean(entropy), gradient)

    def kl(self, old: tuple[ArrayT, ...], new: tuple[ArrayT, ...]) -> ArrayT:
        """Σ p (ln p − ln p')."""
        log_p = log_softmax(old[0])
        return row_sums(namespace(log_p).exp(log_p) * (log_p - log_softmax(new[0])))

    def fisher_metric(self, parameters: tuple[ArrayT, ...], tangent: tuple[ArrayT, ...]) -> tuple[ArrayT, ...]:
        """M = diag(p) − p pᵀ."""
        log_p = log_softmax(parameters[0])
        p = namespace(log_p).exp(log_p)
        weighted = p * tangent[0]
        return (weighted - p * row_sums(weighted)[:, None],)


def log_softmax(logits: ArrayT) -> ArrayT:
    """
    Logits normalised to log-probabilities; that of an action that a logit of −∞ forbids is the lowest float32, so that
    p ln p is 0.

    :param logits: shape (batch, n)
    :return: shape (batch, n)
    """
    return raise_to(logits - log_sum_exp(logits)[:, None], LOWEST)


def _one_hot(actions: ArrayT, like: ArrayT) -> ArrayT:
    """
    e_a, one row a sample.

    :param actions: 0 … n − 1, shape (batch, 1)
    :param like: shape (batch, n)
    :return: bool, shape (batch, n)
    """
    return actions == indices(like.shape[1], like)


def _chosen(array: ArrayT, actions: ArrayT) -> ArrayT:
    """
    The column of each row that its action names.

    :param array: shape (batch, n)
    :param actions: 0 … n − 1, shape (batch, 1)
    :return: shape (batch,)
    """
    return array[indices(len(array), array), actions[:, 0]]
