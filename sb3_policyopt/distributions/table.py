"""Which family of distributions serves which action space."""

import math
from typing import Any

from gymnasium import spaces

from sb3_policyopt.distributions.family import ActionDistribution, Bernoulli, Categorical, DiagonalGaussian, MultiCategorical


def make_action_distribution(action_space: spaces.Space[Any]) -> ActionDistribution:
    """
    The family that SB3's policies use for an action space.

    :param action_space: Box, Discrete, MultiDiscrete or MultiBinary (with one axis)
    :return: its family of distributions
    :raises ValueError: for any other space
    """
    if isinstance(action_space, spaces.Box):
        return DiagonalGaussian(math.prod(action_space.shape))
    if isinstance(action_space, spaces.Discrete):
        return Categorical(int(action_space.n))
    if isinstance(action_space, spaces.MultiDiscrete):
        return MultiCategorical(tuple(int(n) for n in action_space.nvec))
    if isinstance(action_space, spaces.MultiBinary):
        return Bernoulli(math.prod(action_space.shape))
    raise ValueError(f"action_space: no distribution for {action_space}; use Box, Discrete, MultiDiscrete or MultiBinary")
