"""One table: which of SB3's distributions is which family."""

import math
import sys
from collections.abc import Callable
from typing import TypeAlias

from gymnasium import spaces
from stable_baselines3.common import distributions as sb3
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt.distributions.bernoulli import Bernoulli
from sb3_policyopt.distributions.categorical import Categorical
from sb3_policyopt.distributions.family import ActionDistribution
from sb3_policyopt.distributions.gaussian import DiagonalGaussian
from sb3_policyopt.distributions.masking import choices
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


def _choices(space: spaces.MultiDiscrete | spaces.MultiBinary) -> MultiCategorical:
    return MultiCategorical(choices(space))


FAMILIES: dict[type[sb3.Distribution], tuple[type, Callable[..., ActionDistribution]]] = {
    sb3.DiagGaussianDistribution: (spaces.Box, _gaussian),
    sb3.CategoricalDistribution: (spaces.Discrete, _categorical),
    sb3.MultiCategoricalDistribution: (spaces.MultiDiscrete, _multi_categorical),
    sb3.BernoulliDistribution: (spaces.MultiBinary, _bernoulli),
}
"""By SB3's class: the action space that it serves, and the family for such a space."""


MASKED_FAMILIES: dict[str, tuple[type, Callable[..., ActionDistribution]]] = {
    "MaskableCategoricalDistribution": (spaces.Discrete, _categorical),
    "MaskableMultiCategoricalDistribution": (spaces.MultiDiscrete, _multi_categorical),
    "MaskableBernoulliDistribution": (spaces.MultiBinary, _choices),
}
"""By the name of sb3-contrib's class: the same. A mask's penalties are added to the logits (M1)."""


def is_masked(distribution: sb3.Distribution) -> bool:
    """
    Whether a distribution is one of sb3-contrib's for masks.

    :param distribution: of a policy
    :return: False for a subclass
    """
    kind, masked = type(distribution), sys.modules.get("sb3_contrib.common.maskable.distributions")
    return masked is not None and getattr(masked, kind.__name__, None) is kind


def family_of(policy: ActorCriticPolicy) -> ActionDistribution | None:
    """
    The family of a policy's action distribution.

    :param policy: any SB3 actor-critic policy
    :return: None if there is none for it here
    """
    kind = type(policy.action_dist)
    space, make = FAMILIES.get(kind, (None, None))
    if is_masked(policy.action_dist):
        space, make = MASKED_FAMILIES.get(kind.__name__, (None, None))
    return None if make is None or type(policy.action_space) is not space else make(policy.action_space)
