"""
S2, T5, P3: SB3's action distributions as families of functions of their parameters.

A distribution's parameters are a tuple of arrays: what the actor network puts out for a batch, (batch, n), and for the
Gaussian also the state-independent log standard deviation, (n,). A tangent or a gradient is a tuple of the same length;
its entries have the shape (batch, n), one row a sample, also for the log standard deviation.

Everything is summed over independent action dimensions, so log-probability, entropy and KL are those of the joint action.
The functions serve torch tensors and NumPy arrays alike.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from sb3_policyopt.maths.arrays import Array, indices, log_sum_exp, mean, namespace, row_sums, total

Parameters = tuple[Any, ...]
"""One or two arrays, see the module's text."""

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Evaluation(NamedTuple):
    """
    A minibatch under the current distributions.

    :param log_prob: ln π(a|s), shape (batch,)
    :param score: ∂ln π/∂parameters, shape (batch, n) each
    :param mean_entropy: L_ENT = E[H], a scalar
    :param entropy_gradient: ∂H/∂parameters, broadcastable to (batch, n) each; empty if not asked for
    """

    log_prob: Any
    score: Parameters
    mean_entropy: Any
    entropy_gradient: Parameters


class ActionDistribution(ABC):
    """A family of distributions over actions. ``output_dim`` is the width n of the actor network's output."""

    output_dim: int

    @abstractmethod
    def sample(self, parameters: Parameters, noise: Any) -> Any:
        """
        Draw actions by transforming noise that does not depend on the parameters.

        :param parameters: the distributions of a batch
        :param noise: see :meth:`noise`, shape (batch, n)
        :return: actions, shape (batch, n_actions)
        """

    @abstractmethod
    def noise(self, uniform: Any, normal: Any) -> Any:
        """
        The noise that :meth:`sample` transforms, made from standard draws.

        :param uniform: () ↦ uniform draws in (0, 1), any shape
        :param normal: () ↦ standard normal draws, the same shape
        :return: the same shape
        """

    @abstractmethod
    def log_prob(self, parameters: Parameters, actions: Any) -> Any:
        """
        ln π(a|s).

        :param parameters: the distributions of a batch
        :param actions: shape (batch, n_actions)
        :return: shape (batch,)
        """

    def sample_and_log_prob(self, parameters: Parameters, noise: Any) -> tuple[Any, Any]:
        """
        Draw actions, with their log-probabilities.

        :param parameters: the distributions of a batch
        :param noise: see :meth:`noise`, shape (batch, n)
        :return: actions, shape (batch, n_actions); ln π(a|s), shape (batch,)
        """
        actions = self.sample(parameters, noise)
        return actions, self.log_prob(parameters, actions)

    @abstractmethod
    def log_prob_and_score(self, parameters: Parameters, actions: Any) -> tuple[Any, Parameters]:
        """
        ln π(a|s) and its gradient with respect to the parameters, which has mean zero under π (T4).

        :param parameters: the distributions of a batch
        :param actions: shape (batch, n_actions)
        :return: shape (batch,), and per-sample gradients, shape (batch, n) each
        """

    @abstractmethod
    def entropy(self, parameters: Parameters) -> Any:
        """
        P3: H = −E_a[ln π(a|s)] in nats.

        :param parameters: the distributions of a batch
        :return: shape (batch,)
        """

    @abstractmethod
    def entropy_gradient(self, parameters: Parameters) -> Parameters:
        """
        ∂H/∂parameters, which equals −E_a[(1 + ln π) ∂ln π].

        :param parameters: the distributions of a batch
        :return: per-sample gradients, broadcastable to (batch, n) each
        """

    def evaluate(self, parameters: Parameters, actions: Any, entropy_gradient: bool) -> Evaluation:
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

    def mean_entropy(self, parameters: Parameters) -> Any:
        """
        P3: L_ENT = E_s[H].

        :param parameters: the distributions of a batch
        :return: a scalar
        """
        return mean(self.entropy(parameters))

    @abstractmethod
    def kl(self, old: Parameters, new: Parameters) -> Any:
        """
        S2: D(π_old‖π_new) = E_{a∼π_old}[ln π_old − ln π_new] in nats.

        :param old: the distributions of a batch
        :param new: others for the same states
        :return: shape (batch,)
        """

    @abstractmethod
    def fisher_metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """
        T5: M u, where M = E[score scoreᵀ] is the Fisher information of the parameters themselves, one block a state.

        :param parameters: the distributions of a batch
        :param tangent: u, a direction in parameter space, broadcastable to (batch, n) each
        :return: M u, broadcastable to (batch, n) each
        """


@dataclass(frozen=True)
class DiagonalGaussian(ActionDistribution):
    """
    Independent normal distributions: parameters (mean (batch, n), log_std (n,)).

    :param output_dim: number n of action dimensions
    """

    output_dim: int

    def noise(self, uniform: Any, normal: Any) -> Any:
        """Standard normal."""
        return normal()

    def sample(self, parameters: Parameters, noise: Any) -> Any:
        """a = μ + σ ε."""
        mean, log_std = parameters
        return mean + namespace(mean).exp(log_std) * noise

    def log_prob(self, parameters: Parameters, actions: Any) -> Any:
        """−½ Σ z² − Σ ln σ − ½ n ln 2π with z = (a − μ)/σ."""
        mean, log_std = parameters
        z = (actions - mean) * namespace(mean).exp(-log_std)
        return -0.5 * row_sums(z * z) - (total(log_std) + self.output_dim * HALF_LOG_2PI)

    def deviations_and_log_prob(self, log_std: Any, noise: Any) -> tuple[Any, Any]:
        """
        What a draw does not owe to the mean: z = (a − μ)/σ is the noise itself.

        :param log_std: ln σ, shape (n,)
        :param noise: ε, shape (..., n)
        :return: a − μ = σ ε, shape (..., n); ln π(a|s), shape (...,)
        """
        log_prob = -0.5 * row_sums(noise * noise) - (total(log_std) + self.output_dim * HALF_LOG_2PI)
        return namespace(noise).exp(log_std) * noise, log_prob

    def sample_and_log_prob(self, parameters: Parameters, noise: Any) -> tuple[Any, Any]:
        """a = μ + σ ε."""
        mean, log_std = parameters
        deviations, log_prob = self.deviations_and_log_prob(log_std, noise)
        return mean + deviations, log_prob

    def log_prob_and_score(self, parameters: Parameters, actions: Any) -> tuple[Any, Parameters]:
        """The score is (z/σ, z² − 1)."""
        mean, log_std = parameters
        inverse_std = namespace(mean).exp(-log_std)
        z = (actions - mean) * inverse_std
        squares = z * z
        log_prob = -0.5 * row_sums(squares) - (total(log_std) + self.output_dim * HALF_LOG_2PI)
        return log_prob, (z * inverse_std, squares - 1)

    def entropy(self, parameters: Parameters) -> Any:
        """H = Σ ln σ + ½ n (1 + ln 2π), the same in every state."""
        mean = parameters[0]
        return namespace(mean).broadcast_to(self.mean_entropy(parameters), mean.shape[:1])

    def entropy_gradient(self, parameters: Parameters) -> Parameters:
        """(0, 1)."""
        mean, log_std = parameters
        xp = namespace(mean)
        return xp.zeros_like(mean[:1]), xp.ones_like(log_std)[None]

    def mean_entropy(self, parameters: Parameters) -> Any:
        """That of any state."""
        return total(parameters[1]) + self.output_dim * (0.5 + HALF_LOG_2PI)

    def kl(self, old: Parameters, new: Parameters) -> Any:
        """Σ [ln σ' − ln σ + (σ² + (μ − μ')²)/(2σ'²) − ½]; ' marks the new one."""
        (mean, log_std), (new_mean, new_log_std) = old, new
        xp = namespace(mean)
        log_ratio = new_log_std - log_std
        z = (mean - new_mean) * xp.exp(-new_log_std)
        spread = (log_ratio + 0.5 * xp.expm1(-2 * log_ratio)).sum()
        return 0.5 * row_sums(z * z) + spread

    def fisher_metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """M = diag(1/σ², 2)."""
        mean, log_std = parameters
        return tangent[0] * namespace(mean).exp(-2 * log_std), 2 * tangent[1]


@dataclass(frozen=True)
class Categorical(ActionDistribution):
    """
    One of n actions: parameters (logits (batch, n),).

    :param output_dim: number n of actions
    """

    output_dim: int

    def noise(self, uniform: Any, normal: Any) -> Any:
        """Standard Gumbel: −ln(−ln u)."""
        u = uniform()
        xp = namespace(u)
        return -xp.log(-xp.log(u))

    def sample(self, parameters: Parameters, noise: Any) -> Any:
        """The action with the largest logit + Gumbel noise."""
        return (parameters[0] + noise).argmax(1)[:, None]

    def log_prob(self, parameters: Parameters, actions: Any) -> Any:
        """The action's logit, less ln Σ e^logit."""
        (logits,) = parameters
        return _chosen(logits, actions) - log_sum_exp(logits)

    def log_prob_and_score(self, parameters: Parameters, actions: Any) -> tuple[Any, Parameters]:
        """The score is e_a − p."""
        log_p = log_softmax(parameters[0])
        score = -namespace(log_p).exp(log_p)
        score += _one_hot(actions, log_p)
        return _chosen(log_p, actions), (score,)

    def entropy(self, parameters: Parameters) -> Any:
        """H = −Σ p ln p."""
        log_p = log_softmax(parameters[0])
        return -row_sums(namespace(log_p).exp(log_p) * log_p)

    def entropy_gradient(self, parameters: Parameters) -> Parameters:
        """−p (ln p + H)."""
        log_p = log_softmax(parameters[0])
        p = namespace(log_p).exp(log_p)
        return (-p * (log_p - row_sums(p * log_p)[:, None]),)

    def evaluate(self, parameters: Parameters, actions: Any, entropy_gradient: bool) -> Evaluation:
        """One softmax for all."""
        log_p = log_softmax(parameters[0])
        p = namespace(log_p).exp(log_p)
        entropy = -row_sums(p * log_p)
        gradient = (-p * (log_p + entropy[:, None]),) if entropy_gradient else ()
        score = -p
        score += _one_hot(actions, log_p)
        return Evaluation(_chosen(log_p, actions), (score,), mean(entropy), gradient)

    def kl(self, old: Parameters, new: Parameters) -> Any:
        """Σ p (ln p − ln p')."""
        log_p = log_softmax(old[0])
        return row_sums(namespace(log_p).exp(log_p) * (log_p - log_softmax(new[0])))

    def fisher_metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """M = diag(p) − p pᵀ."""
        log_p = log_softmax(parameters[0])
        p = namespace(log_p).exp(log_p)
        weighted = p * tangent[0]
        return (weighted - p * row_sums(weighted)[:, None],)


@dataclass(frozen=True)
class MultiCategorical(ActionDistribution):
    """
    Independent choices: parameters (logits (batch, Σ nvec),), the choices' logits side by side.

    :param nvec: number of actions of each choice
    """

    nvec: tuple[int, ...]

    @property
    def output_dim(self) -> int:  # type: ignore[override]
        """Σ nvec."""
        return sum(self.nvec)

    def _choices(self, array: Any) -> list[tuple[Categorical, Any]]:
        """
        Cut logits into the choices they belong to.

        :param array: shape (batch, Σ nvec), or with 1 for batch
        :return: for each choice its family and its columns
        """
        ends = [sum(self.nvec[: i + 1]) for i in range(len(self.nvec))]
        return [(Categorical(n), array[:, end - n : end]) for n, end in zip(self.nvec, ends, strict=True)]

    def noise(self, uniform: Any, normal: Any) -> Any:
        """Standard Gumbel, as for one choice."""
        return Categorical(self.output_dim).noise(uniform, normal)

    def sample(self, parameters: Parameters, noise: Any) -> Any:
        """Each choice by itself."""
        choices = zip(self._choices(parameters[0]), self._choices(noise), strict=True)
        return _join([family.sample((logits,), part) for (family, logits), (_, part) in choices])

    def log_prob(self, parameters: Parameters, actions: Any) -> Any:
        """Sum over choices."""
        choices = enumerate(self._choices(parameters[0]))
        return sum(family.log_prob((logits,), actions[:, i : i + 1]) for i, (family, logits) in choices)

    def log_prob_and_score(self, parameters: Parameters, actions: Any) -> tuple[Any, Parameters]:
        """Sum over choices; the scores side by side."""
        choices = enumerate(self._choices(parameters[0]))
        parts = [family.log_prob_and_score((logits,), actions[:, i : i + 1]) for i, (family, logits) in choices]
        return sum(log_prob for log_prob, _ in parts), (_join([score for _, (score,) in parts]),)

    def entropy(self, parameters: Parameters) -> Any:
        """Sum over choices."""
        return sum(family.entropy((logits,)) for family, logits in self._choices(parameters[0]))

    def entropy_gradient(self, parameters: Parameters) -> Parameters:
        """Side by side."""
        return (_join([family.entropy_gradient((logits,))[0] for family, logits in self._choices(parameters[0])]),)

    def kl(self, old: Parameters, new: Parameters) -> Any:
        """Sum over choices."""
        choices = zip(self._choices(old[0]), self._choices(new[0]), strict=True)
        return sum(family.kl((logits,), (new_logits,)) for (family, logits), (_, new_logits) in choices)

    def fisher_metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """Block diagonal."""
        choices = zip(self._choices(parameters[0]), self._choices(tangent[0]), strict=True)
        return (_join([family.fisher_metric((logits,), (part,))[0] for (family, logits), (_, part) in choices]),)


@dataclass(frozen=True)
class Bernoulli(ActionDistribution):
    """
    Independent bits: parameters (logits (batch, n),).

    :param output_dim: number n of bits
    """

    output_dim: int

    def noise(self, uniform: Any, normal: Any) -> Any:
        """Standard logistic: ln u − ln(1 − u)."""
        u = uniform()
        xp = namespace(u)
        return xp.log(u) - xp.log1p(-u)

    def sample(self, parameters: Parameters, noise: Any) -> Any:
        """1 where logit + logistic noise > 0, which has the probability σ(logit)."""
        logits = parameters[0]
        return (logits + noise > 0) * namespace(logits).ones_like(logits)

    def log_prob(self, parameters: Parameters, actions: Any) -> Any:
        """Σ a l − ln(1 + e^l)."""
        (logits,) = parameters
        return row_sums(actions * logits - softplus(logits))

    def log_prob_and_score(self, parameters: Parameters, actions: Any) -> tuple[Any, Parameters]:
        """The score is a − σ(l)."""
        return self.log_prob(parameters, actions), (actions - sigmoid(parameters[0]),)

    def entropy(self, parameters: Parameters) -> Any:
        """Σ ln(1 + e^l) − σ(l) l."""
        (logits,) = parameters
        return row_sums(softplus(logits) - sigmoid(logits) * logits)

    def entropy_gradient(self, parameters: Parameters) -> Parameters:
        """−l σ(l) (1 − σ(l))."""
        (logits,) = parameters
        return (-logits * sigmoid(logits) * sigmoid(-logits),)

    def kl(self, old: Parameters, new: Parameters) -> Any:
        """Σ σ(l) (l − l') − ln(1 + e^l) + ln(1 + e^l')."""
        (logits,), (new_logits,) = old, new
        return row_sums(sigmoid(logits) * (logits - new_logits) - softplus(logits) + softplus(new_logits))

    def fisher_metric(self, parameters: Parameters, tangent: Parameters) -> Parameters:
        """M = diag(σ(l) (1 − σ(l)))."""
        (logits,) = parameters
        return (sigmoid(logits) * sigmoid(-logits) * tangent[0],)


def log_softmax(logits: Any) -> Any:
    """
    Logits normalised to log-probabilities.

    :param logits: shape (batch, n)
    :return: shape (batch, n)
    """
    return logits - log_sum_exp(logits)[:, None]


def softplus(x: Any) -> Any:
    """
    ln(1 + e^x), without overflow.

    :param x: any shape
    :return: the same shape
    """
    xp = namespace(x)
    return xp.logaddexp(x, xp.zeros_like(x))


def sigmoid(x: Any) -> Any:
    """
    σ(x) = 1 / (1 + e^−x), without overflow.

    :param x: any shape
    :return: the same shape
    """
    return 0.5 + 0.5 * namespace(x).tanh(0.5 * x)


def _one_hot(actions: Array, like: Array) -> Any:
    """
    e_a, one row a sample.

    :param actions: 0 … n − 1, shape (batch, 1)
    :param like: shape (batch, n)
    :return: bool, shape (batch, n)
    """
    return actions == indices(like.shape[1], like)


def _chosen(array: Array, actions: Array) -> Any:
    """
    The column of each row that its action names.

    :param array: shape (batch, n)
    :param actions: 0 … n − 1, shape (batch, 1)
    :return: shape (batch,)
    """
    return array[indices(len(array), array), actions[:, 0]]


def _join(parts: list[Any]) -> Any:
    """
    Put the choices' columns side by side.

    :param parts: shape (batch, n_i) each
    :return: shape (batch, Σ n_i)
    """
    return namespace(parts[0]).concatenate(parts, 1)
