"""One table: which of SB3's distributions is which family."""

import math
from collections.abc import Callable
from typing import TypeAlias

from gymnasium import spaces
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt.distributions.bernoulli import Bernoulli
from sb3_policyopt.distributions.categorical import Categorical
from sb3_policyopt.distributions.family import ActionDistribution
from sb3_policyopt.distributions.gaussian import DiagonalGaussian
from sb3_policyopt.distributions.multi_categorical import MultiCategorical

Box: TypeAlias = spaces.Box


def _gaussian(space: Box) -> DiagonalGaussian:
    return DiagonalGaussian(math.prod(space.shape))


def _categorical(space: spaces.Discrete) -> Categorical:
    return Categorical(int(space.n))


def _multi_categorical(space: spaces.MultiDiscrete) -> MultiCategorical:
    return MultiCategorical(tuple(int(n) for n in space.nvec.reshape(-1)))


def _bernoulli(space: spaces.MultiBinary) -> Bernoulli:
    return Bernoulli(math.prod(space.shape))


FAMILIES: dict[type[sb3.Distribution], tuple[type, Callable[..., ActionDistribution]]] = {
    sb3.DiagGaussianDistribution: (spaces.Box, _gaussian),
    sb3.CategoricalDistribution: (spaces.Discrete, _categorical),
    sb3.MultiCategoricalDistribution: (spaces.MultiDiscrete, _multi_categorical),
    sb3.BernoulliDistribution: (spaces.MultiBinary, _bernoulli),
}
"""By SB3's class: the action space that it serves, and the family for such a space."""


def family_of(policy: ActorCriticPolicy) -> ActionDistribution | None:
    """
    The family of a policy's action distribution.

    :param policy: any SB3 actor-critic policy
    :return: None if there is none for it here
    """
    space, make = FAMILIES.get(type(policy.action_dist), (None, None))
    return None if make is None or type(policy.action_space) is not space else make(policy.action_space)
