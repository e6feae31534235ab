"""
sb3-contrib's rollout buffers as they are kept here: masks are booleans, whose memory is the same in every rollout.

Importing this module needs sb3-contrib.
"""

from typing import Any, cast

import numpy as np
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_policyopt.distributions.masking import choices
from sb3_policyopt.maths.arrays import NumpyArray


class _BooleanMasks:
    """Gives a buffer ``action_masks``, bool, shape (n_steps, n_envs, n_choices), and ``mask_dims``, their number n_choices."""

    action_masks: NumpyArray
    mask_dims: int
    _masks: NumpyArray | None = None

    def _start_masks(self, buffer: RolloutBuffer) -> None:
        """
        All actions are allowed until a step is stored.

        :param buffer: itself
        """
        if self._masks is None:
            self.mask_dims = sum(choices(buffer.action_space))
            self._masks = np.empty((buffer.buffer_size, buffer.n_envs, self.mask_dims), bool)
        self.action_masks = self._masks
        self.action_masks.fill(True)


class _WithStates(_BooleanMasks):
    """The same beside states."""

    def reset(self) -> None:
        """Begin a rollout."""
        self._start_masks(cast(RolloutBuffer, self))
        super().reset()  # type: ignore[misc]  # of the buffer that stands behind this class

    def add(self, *args: Any, action_masks: NumpyArray | None = None, **kwargs: Any) -> None:
        """
        Store a step.

        :param args: as sb3-contrib's
        :param action_masks: bool, shape (n_envs, n_choices); None for all allowed
        :param kwargs: as sb3-contrib's
        """
        buffer = cast(RolloutBuffer, self)
        if action_masks is not None:
            self.action_masks[buffer.pos] = action_masks.reshape(buffer.n_envs, self.mask_dims)
        super().add(*args, **kwargs)  # type: ignore[misc]


class MaskedBuffer(_BooleanMasks, MaskableRolloutBuffer):  # type: ignore[misc]  # sb3-contrib has no types
    """sb3-contrib's buffer with masks."""

    def reset(self) -> None:
        """Begin a rollout."""
        self._start_masks(self)
        RolloutBuffer.reset(self)


class MaskedDictBuffer(_BooleanMasks, MaskableDictRolloutBuffer):  # type: ignore[misc]
    """The same for dicts of observations."""

    def reset(self) -> None:
        """Begin a rollout."""
        self._start_masks(self)
        DictRolloutBuffer.reset(self)


class MaskedRecurrentBuffer(_WithStates, RecurrentRolloutBuffer):  # type: ignore[misc]
    """sb3-contrib's buffer with states, and masks beside them."""


class MaskedRecurrentDictBuffer(_WithStates, RecurrentDictRolloutBuffer):  # type: ignore[misc]
    """The same for dicts of observations."""


def own_class(observation_space: spaces.Space[Any], masks: bool, memory: bool) -> type[RolloutBuffer]:
    """
    The buffer for a kind of policy.

    :param observation_space: of the environments
    :param masks: whether there are masks
    :param memory: whether there are states
    :return: a class, that of sb3-contrib if nothing has to be added
    """
    in_dict = isinstance(observation_space, spaces.Dict)
    if masks and memory:
        return MaskedRecurrentDictBuffer if in_dict else MaskedRecurrentBuffer
    if masks:
        return MaskedDictBuffer if in_dict else MaskedBuffer
    return RecurrentDictRolloutBuffer if in_dict else RecurrentRolloutBuffer


def stored_class(observation_space: spaces.Space[Any], masks: bool) -> type[RolloutBuffer] | None:
    """
    What zips name as the buffer's class, so that sb3-contrib opens them.

    :param observation_space: of the environments
    :param masks: whether there are masks
    :return: sb3-contrib's class; None for a policy with memory, for which sb3-contrib chooses itself
    """
    in_dict = isinstance(observation_space, spaces.Dict)
    if masks:
        return MaskableDictRolloutBuffer if in_dict else MaskableRolloutBuffer
    return None
