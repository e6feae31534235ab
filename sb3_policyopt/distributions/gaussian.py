"""Independent normal distributions with a state-independent standard deviation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from sb3_policyopt.distributions.family import ActionDistribution, Sampler
from sb3_policyopt.maths.arrays import ArrayT, NumpyArray, Scalar, namespace, row_sums, total

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class DiagonalGaussian(ActionDistribution):
    """
    Independent normal distributions: parameters (mean (batch, n), log_std (n,)).

    :param output_dim: number n of action dimensions
    """

    output_dim: int
    free: ClassVar[tuple[str, ...]] = ("log_std",)

    def sampler(self, n_steps: int, n_envs: int) -> Sampler:
        """One that computes σ ε of all steps at once."""
        return GaussianSampler(self, self.rollout_noise(n_steps, n_envs))

    def noise(self, uniform: Callable[[], ArrayT], normal: Callable[[], ArrayT]) -> ArrayT:
        """Standard normal."""
        return normal()

    def sample(self, parameters: tuple[ArrayT, ...], noise: ArrayT) -> ArrayT:
        """a = μ + σ ε."""
        mean, log_std = parameters
        return mean + namespace(mean).exp(log_std) * noise

    def log_prob(self, parameters: tuple[ArrayT, ...], actions: ArrayT) -> ArrayT:
        """−½ Σ z² − Σ ln σ − ½ n ln 2π with z = (a − μ)/σ."""
        mean, log_std = parameters
        z = (actions - mean) * namespace(mean).exp(-log_std)
        return -0.5 * row_sums(z * z) - (total(log_std) + self.output_dim * HALF_LOG_2PI)

    def deviations_and_log_prob(self, log_std: ArrayT, noise: ArrayT) -> tuple[ArrayT, ArrayT]:
        """
        The part of a draw that does not depend on the mean: z = (a − μ)/σ is the noise itself.

        :param log_std: ln σ, shape (n,)
        :param noise: ε, shape (..., n)
        :return: a − μ = σ ε, shape (..., n); ln π(a|s), shape (...,)
        """
        log_prob = -0.5 * row_sums(noise * noise) - (total(log_std) + self.output_dim * HALF_LOG_2PI)
        return namespace(noise).exp(log_std) * noise, log_prob

    def sample_and_log_prob(self, parameters: tuple[ArrayT, ...], noise: ArrayT) -> tuple[ArrayT, ArrayT]:
        """a = μ + σ ε."""
        mean, log_std = parameters
        deviations, log_prob = self.deviations_and_log_prob(log_std, noise)
        return mean + deviations, log_prob

    def log_prob_and_score(self, parameters: tuple[ArrayT, ...], actions: ArrayT) -> tuple[ArrayT, tuple[ArrayT, ...]]:
        """The score is (z/σ, z² − 1)."""
        mean, log_std = parameters
        inverse_std = namespace(mean).exp(-log_std)
        z = (actions - mean) * inverse_std
        squares = z * z
        log_prob = -0.5 * row_sums(squares) - (total(log_std) + self.output_dim * HALF_LOG_2PI)
        return log_prob, (z * inverse_std, squares - 1)

    def entropy(self, parameters: tuple[ArrayT, ...]) -> ArrayT:
        """H = Σ ln σ + ½ n (1 + ln 2π), the same in every state."""
        mean = parameters[0]
        return namespace(mean).broadcast_to(self.mean_entropy(parameters), mean.shape[:1])

    def entropy_gradient(self, parameters: tuple[ArrayT, ...]) -> tuple[ArrayT, ...]:
        """(0, 1)."""
        mean, log_std = parameters
        xp = namespace(mean)
        return xp.zeros_like(mean[:1]), xp.ones_like(log_std)[None]

    def mean_entropy(self, parameters: tuple[ArrayT, ...]) -> Scalar:
        """That of any state."""
        return total(parameters[1]) + self.output_dim * (0.5 + HALF_LOG_2PI)

    def kl(self, old: tuple[ArrayT, ...], new: tuple[ArrayT, ...]) -> ArrayT:
        """Σ [ln σ' − ln σ + (σ² + (μ − μ')²)/(2σ'²) − ½]; ' marks the new one."""
        (mean, log_std), (new_mean, new_log_std) = old, new
        xp = namespace(mean)
        log_ratio = new_log_std - log_std
        z = (mean - new_mean) * xp.exp(-new_log_std)
        spread = (log_ratio + 0.5 * xp.expm1(-2 * log_ratio)).sum()
        return 0.5 * row_sums(z * z) + spread

    def fisher_metric(self, parameters: tuple[ArrayT, ...], tangent: tuple[ArrayT, ...]) -> tuple[ArrayT, ...]:
        """M = diag(1/σ², 2)."""
        mean, log_std = parameters
        return tangent[0] * namespace(mean).exp(-2 * log_std), 2 * tangent[1]


class GaussianSampler(Sampler):
    """
    A sampler that computes σ ε and ln π of all steps at once, as σ is the same in every state. They are computed anew once
    ln σ has changed, which a callback can do in the middle of a rollout.

    :param family: of the distributions
    :param noise: of all steps, shape (n_steps, n_envs, n)
    """

    def __init__(self, family: DiagonalGaussian, noise: NumpyArray) -> None:
        super().__init__(family, noise)
        self.gaussian = family
        self.computed_for = b""
        self.deviations = self.log_prob = noise

    def draw(self, parameters: tuple[NumpyArray, ...]) -> tuple[NumpyArray, NumpyArray]:
        """a = μ + σ ε."""
        mean, log_std = parameters
        now = log_std.tobytes()
        if now != self.computed_for:
            self.deviations, self.log_prob = self.gaussian.deviations_and_log_prob(log_std, self.noise)
            self.computed_for = now
        step = self.next_step
        self.next_step += 1
        return mean + self.deviations[step], self.log_prob[step]
