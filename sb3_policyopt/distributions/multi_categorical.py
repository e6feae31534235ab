"""Several independent choices."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

from sb3_policyopt.distributions.categorical import Categorical
from sb3_policyopt.distributions.family import ActionDistribution
from sb3_policyopt.maths.arrays import ArrayT, namespace


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

    def _choices(self, array: ArrayT) -> list[tuple[Categorical, ArrayT]]:
        """
        Cut logits into the choices they belong to.

        :param array: shape (batch, Σ nvec), or with 1 for batch
        :return: for each choice its family and its columns
        """
        ends = [sum(self.nvec[: i + 1]) for i in range(len(self.nvec))]
        return [(Categorical(n), array[:, end - n : end]) for n, end in zip(self.nvec, ends, strict=True)]

    def noise(self, uniform: Callable[[], ArrayT], normal: Callable[[], ArrayT]) -> ArrayT:
        """Standard Gumbel, as for one choice."""
        return Categorical(self.output_dim).noise(uniform, normal)

    def sample(self, parameters: tuple[ArrayT, ...], noise: ArrayT) -> ArrayT:
        """Each choice by itself."""
        choices = zip(self._choices(parameters[0]), self._choices(noise), strict=True)
        return _join([family.sample((logits,), part) for (family, logits), (_, part) in choices])

    def log_prob(self, parameters: tuple[ArrayT, ...], actions: ArrayT) -> ArrayT:
        """Sum over choices."""
        choices = enumerate(self._choices(parameters[0]))
        return _sum(family.log_prob((logits,), actions[:, i : i + 1]) for i, (family, logits) in choices)

    def log_prob_and_score(self, parameters: tuple[ArrayT, ...], actions: ArrayT) -> tuple[ArrayT, tuple[ArrayT, ...]]:
        """Sum over choices; the scores side by side."""
        choices = enumerate(self._choices(parameters[0]))
        parts = [family.log_prob_and_score((logits,), actions[:, i : i + 1]) for i, (family, logits) in choices]
        return _sum(log_prob for log_prob, _ in parts), (_join([score for _, (score,) in parts]),)

    def entropy(self, parameters: tuple[ArrayT, ...]) -> ArrayT:
        """Sum over choices."""
        return _sum(family.entropy((logits,)) for family, logits in self._choices(parameters[0]))

    def entropy_gradient(self, parameters: tuple[ArrayT, ...]) -> tuple[ArrayT, ...]:
        """Side by side."""
        return (_join([family.entropy_gradient((logits,))[0] for family, logits in self._choices(parameters[0])]),)

    def kl(self, old: tuple[ArrayT, ...], new: tuple[ArrayT, ...]) -> ArrayT:
        """Sum over choices."""
        choices = zip(self._choices(old[0]), self._choices(new[0]), strict=True)
        return _sum(family.kl((logits,), (new_logits,)) for (family, logits), (_, new_logits) in choices)

    def fisher_metric(self, parameters: tuple[ArrayT, ...], tangent: tuple[ArrayT, ...]) -> tuple[ArrayT, ...]:
        """Block diagonal."""
        choices = zip(self._choices(parameters[0]), self._choices(tangent[0]), strict=True)
        return (_join([family.fisher_metric((logits,), (part,))[0] for (family, logits), (_, part) in choices]),)


def _join(parts: list[ArrayT]) -> ArrayT:
    """
    Put the choices' columns side by side.

    :param parts: shape (batch, n_i) each
    :return: shape (batch, Σ n_i)
    """
    return namespace(parts[0]).concatenate(parts, 1)


def _sum(parts: Iterable[ArrayT]) -> ArrayT:
    """
    Add what belongs to each choice.

    :param parts: shape (batch,) each
    :return: shape (batch,)
    """
    return reduce(operator.add, parts)
