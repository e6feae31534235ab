"""M1: forbidden actions. Their logits get so large a penalty that their probability, and every slope through it, is 0."""

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_policyopt.maths.arrays import ArrayT, NumpyArray

PENALTY = -1e8
"""sb3-contrib's logit of a forbidden action."""

_ZERO, _PENALTY = np.float32(0), np.float32(PENALTY)


def penalties(action_masks: ArrayT) -> ArrayT:
    """
    M1: m, to be added to logits.

    :param action_masks: which actions are allowed, bool, shape (batch, n)
    :return: 0 for those that are, −1e8 for the others; float32, shape (batch, n)
    """
    if isinstance(action_masks, np.ndarray):
        return np.where(action_masks, _ZERO, _PENALTY)
    return th.zeros(action_masks.shape, dtype=th.float32, device=action_masks.device).masked_fill_(~action_masks, PENALTY)


def choices(space: spaces.Space[object]) -> tuple[int, ...]:
    """
    How many actions each choice is among, as the columns of a mask lie side by side.

    :param space: of actions
    :return: (n,) for Discrete, nvec for MultiDiscrete, (2, …, 2) for MultiBinary
    :raises ValueError: if no mask fits the space
    """
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return tuple(int(n) for n in space.nvec)
    if isinstance(space, spaces.MultiBinary) and isinstance(space.n, int):
        return (2,) * space.n
    raise ValueError(
        f"policy: masks need actions of Discrete, MultiDiscrete or MultiBinary with one axis, but the action space is {space}"
    )


def allows_some(action_masks: NumpyArray, sizes: tuple[int, ...]) -> NumpyArray:
    """
    Rows in which every choice has an allowed action.

    :param action_masks: bool, shape (batch, Σ sizes)
    :param sizes: of :func:`choices`
    :return: bool, shape (batch,)
    """
    if len(sizes) == 1:
        one_choice: NumpyArray = np.logical_or.reduce(action_masks, 1)
        return one_choice
    starts = np.cumsum((0, *sizes[:-1]))
    allows: NumpyArray = np.logical_or.reduceat(action_masks, starts, axis=1)
    return np.logical_and.reduce(allows, 1)
