"""
The families of action distributions, each with the means to integrate over its actions exactly.

An expectation over a discrete action is a sum over all actions. One over a Gaussian action is a Gauss-Hermite sum with
three nodes an axis, exact for polynomials of degree 5: ln π and the score are of degree 2, their products of degree 4.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)

from sb3_policyopt.distributions import ActionDistribution, Bernoulli, Categorical, DiagonalGaussian, MultiCategorical


@dataclass(frozen=True)
class Case:
    name: str
    family: ActionDistribution
    space: spaces.Space[Any]
    make_sb3: Callable[[], Any]

    @property
    def is_gaussian(self) -> bool:
        return isinstance(self.family, DiagonalGaussian)

    def parameters(self, seed: int, batch: int = 5, scale: float = 1.0) -> tuple[np.ndarray, ...]:
        """Random parameters in float64, as NumPy arrays."""
        rng = np.random.default_rng(seed)
        output = scale * rng.standard_normal((batch, self.family.output_dim))
        return (output, 0.5 * rng.standard_normal(self.family.output_dim)) if self.is_gaussian else (output,)

    def sb3(self, parameters: tuple[th.Tensor, ...]) -> Any:
        """SB3's own distribution with these parameters."""
        return self.make_sb3().proba_distribution(*parameters)

    def sb3_actions(self, actions: th.Tensor) -> th.Tensor:
        """Actions as SB3's distribution takes them: one choice without an axis of its own."""
        return actions[:, 0] if isinstance(self.family, Categorical) else actions

    def actions_and_weights(self, parameters: tuple[th.Tensor, ...]) -> list[tuple[th.Tensor, th.Tensor]]:
        """
        Nodes and weights with Σ w f(a) = E_{a∼π}[f(a)], from SB3's distribution, not from ours.

        :return: for each node the actions, shape (batch, n_actions), and the weights, shape (batch,)
        """
        batch = len(parameters[0])
        if self.is_gaussian:
            return gaussian_nodes(parameters[0].detach(), parameters[1].detach().exp().expand_as(parameters[0]))
        combinations = [
            th.tensor(combination, dtype=th.int64).expand(batch, -1)
            for combination in itertools.product(*(range(n) for n in self._choices()))
        ]
        if isinstance(self.family, Bernoulli):
            combinations = [actions.to(parameters[0].dtype) for actions in combinations]
        reference = self.sb3(tuple(p.detach() for p in parameters))
        return [(actions, reference.log_prob(self.sb3_actions(actions)).exp()) for actions in combinations]

    def _choices(self) -> tuple[int, ...]:
        if isinstance(self.family, MultiCategorical):
            return self.family.nvec
        return (self.family.output_dim,) if isinstance(self.family, Categorical) else (2,) * self.family.output_dim


def gaussian_nodes(mean: th.Tensor, std: th.Tensor) -> list[tuple[th.Tensor, th.Tensor]]:
    """Tensor-product Gauss-Hermite nodes a = μ + σ z of independent normal distributions, with their weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    result = []
    for indices in itertools.product(range(3), repeat=mean.shape[1]):
        z = th.tensor(nodes[list(indices)], dtype=mean.dtype)
        result.append((mean + std * z, th.full((len(mean),), float(weights[list(indices)].prod()), dtype=mean.dtype)))
    return result


def expectation(case: Case, parameters: tuple[th.Tensor, ...], function: Callable[[th.Tensor], th.Tensor]) -> th.Tensor:
    """E_{a∼π(·|s)}[function(a)] for every state; ``function`` maps actions to (batch, ...)."""
    total: Any = 0.0
    for actions, weights in case.actions_and_weights(parameters):
        values = function(actions)
        total = total + weights.reshape(-1, *[1] * (values.dim() - 1)) * values
    return total


def as_tensors(parameters: tuple[np.ndarray, ...], requires_grad: bool = False) -> tuple[th.Tensor, ...]:
    return tuple(th.tensor(p, requires_grad=requires_grad) for p in parameters)


def torch_parts(sb3_distribution: Any) -> list[th.distributions.Distribution]:
    inner = sb3_distribution.distribution
    return list(inner) if isinstance(inner, (list, tuple)) else [inner]


CASES = [
    Case("gaussian", DiagonalGaussian(2), spaces.Box(-1, 1, (2,)), lambda: DiagGaussianDistribution(2)),
    Case("categorical", Categorical(4), spaces.Discrete(4), lambda: CategoricalDistribution(4)),
    Case(
        "multi_categorical",
        MultiCategorical((2, 3)),
        spaces.MultiDiscrete([2, 3]),
        lambda: MultiCategoricalDistribution([2, 3]),
    ),
    Case("bernoulli", Bernoulli(3), spaces.MultiBinary(3), lambda: BernoulliDistribution(3)),
]
DISCRETE_CASES = [case for case in CASES if not case.is_gaussian]
