"""Where the masks of allowed actions come from, and whether they are masks."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_policyopt.distributions.masking import allows_some, choices
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.info import Info

METHOD = "action_masks"
"""The method of an environment, or of a VecEnv, that returns masks; sb3-contrib's name."""

INFO = "action_mask"
"""The entry of an info that holds the mask for the observation that came with it."""

WITHOUT = (
    "Environment does not support action masking. Give it a method action_masks(), or put a mask into info['action_mask'], or "
    "wrap it in sb3_contrib's ActionMasker; for training without masks pass use_masking=False to MaskablePPO.learn, or take a "
    "policy without masks"
)


class Masks:
    """
    The masks of a VecEnv, from its own ``action_masks()``, else from the environments' method, else from the infos.

    :param env: the training environments
    :param space: of actions
    :param last: the masks for the last observations, where the infos that held them are gone; None at a training's start
    :param used: False where they are only noted, for a later rollout that uses them
    :raises ValueError: if they are used and the environments give none, or if no mask fits the space
    """

    def __init__(self, env: VecEnv, space: spaces.Space[Any], last: NumpyArray | None = None, used: bool = True) -> None:
        self.env, self.n_envs, self.sizes, self.used = env, env.num_envs, choices(space), used
        self.shape = self.n_envs, sum(self.sizes)
        self.holder: VecEnv | None = None
        self.last: Any = last
        if self._own() is None and not self.by_method:
            self.holder = next((layer for layer in layers(env) if holds_masks(layer.reset_infos)), None)
            if self.holder is None and used:
                raise ValueError(WITHOUT)
            if self.holder is not None and last is None:
                self.last = self._of_infos(self.holder.reset_infos)

    @cached_property
    def by_method(self) -> bool:
        """Whether the environments have the method, asked once, as sb3-contrib does at the start of a rollout."""
        return environments_have(self.env, METHOD)

    def _own(self) -> Callable[[], Any] | None:
        """
        The VecEnv's own masks, looked for in every step.

        :return: the method of the outermost layer that has one. None if there is none, or if a wrapper around it has an
            ``env_method`` of its own: what that makes of the environments' masks is what sb3-contrib takes
        """
        changed = False
        for layer in layers(self.env):  # one by one, as a wrapper refuses a name that two others have
            own = getattr(layer, METHOD) if METHOD in vars(layer) or hasattr(type(layer), METHOD) else None
            if callable(own):
                return None if changed and self.by_method else cast(Callable[[], Any], own)
            changed = changed or (isinstance(layer, VecEnvWrapper) and has_own_env_method(layer))
        return None

    def _ask(self) -> Any:
        """
        Masks for the environments' current observations. Methods are looked up in every step, as in sb3-contrib: an
        environment may set another one, or go on with another environment inside.

        :return: not checked
        """
        own = self._own()
        if own is not None:
            return own()
        return self.last if self.holder is not None else self.env.env_method(METHOD)

    def current(self, step: int) -> NumpyArray:
        """
        The masks for the environments' current observations.

        :param step: number of the step in the rollout, for the message
        :return: bool, shape (n_envs, n_choices), with memory of its own, as environments may change theirs in their step
        :raises ValueError: if they are no masks; the message names the environment and the step
        """
        masks = self._rows(self._ask(), step)
        if masks.dtype != bool:
            as_bool = masks.astype(bool)
            self._check(as_bool == masks, step, "holds other numbers than 0 and 1")
            masks = as_bool
        self._check(allows_some(masks, self.sizes), step, "allows no action" + (" of a choice" if len(self.sizes) > 1 else ""))
        return masks

    def note(self, infos: list[Info], dones: NumpyArray) -> NumpyArray | None:
        """
        Keep the masks that came with a step.

        :param infos: of all environments
        :param dones: whose episode ended, so that the observation, and the mask, are those of the next one, shape (n_envs,)
        :return: the masks for the next step, not checked; None if they are not in the infos
        """
        if self.holder is None:
            return None
        reset_infos = self.holder.reset_infos
        self.last = self._of_infos([reset_infos[i] if done else infos[i] for i, done in enumerate(dones)])
        return self.last

    @staticmethod
    def _of_infos(infos: list[Any]) -> Any:
        return [info.get(INFO, ()) for info in infos]

    def _rows(self, given: Any, step: int) -> NumpyArray:
        """
        A row for each environment.

        :param given: instead of the masks
        :param step: number of the step in the rollout
        :return: a copy, shape (n_envs, n_choices)
        :raises ValueError: if that is not their shape. Only what one environment gave is flattened, as sb3-contrib does
        """
        try:
            masks = np.array(given)
        except ValueError as error:  # rows of different lengths
            raise self._wrong_shape(given, step) from error
        if masks.shape[:1] != self.shape[:1]:
            raise self._wrong_rows(masks.shape or type(given).__name__, step)
        if masks.size != self.n_envs * self.shape[1]:
            raise self._wrong_shape(given, step)
        return masks.reshape(self.shape)

    def _check(self, is_right: NumpyArray, step: int, wrong: str) -> None:
        """
        Raise an error for the first row that is not right.

        :param is_right: bool, shape (n_envs,) or (n_envs, n_choices)
        :param step: number of the step in the rollout
        :param wrong: what is wrong with a row that is not
        :raises ValueError: if there is one
        """
        if not is_right.all():
            environment = int(np.flatnonzero(~is_right.reshape(self.n_envs, -1).all(1))[0])
            raise ValueError(f"The action mask of environment {environment} at step {step} of the rollout {wrong}")

    def _wrong_rows(self, found: object, step: int) -> ValueError:
        """
        The error about what has not one mask for each environment.

        :param found: its shape, or its type if it has none
        :param step: number of the step in the rollout
        :return: the error
        """
        return ValueError(
            f"The action masks at step {step} of the rollout are no array of the shape {self.shape}, one row for each "
            f"environment, but {found}"
        )

    def _wrong_shape(self, given: Any, step: int) -> ValueError:
        """
        The error about a mask of another length.

        :param given: a mask for each environment
        :param step: number of the step in the rollout
        :return: the error
        """
        sizes = [np.size(mask) for mask in given]
        environment = next((i for i, size in enumerate(sizes) if size != self.shape[1]), 0)
        return ValueError(
            f"The action mask of environment {environment} at step {step} of the rollout has the shape "
            f"{np.shape(given[environment])}, but the action space needs {self.shape[1]} entries"
        )


def layers(env: VecEnv) -> Iterator[VecEnv]:
    """
    A VecEnv and what it wraps.

    :param env: the training environments
    :return: the outermost layer first
    """
    while isinstance(env, VecEnvWrapper):
        yield env
        env = env.venv
    yield env


def environments_have(env: VecEnv, name: str) -> bool:
    """
    Whether the environments have an attribute.

    :param env: the training environments
    :param name: of the attribute
    :return: False also where the environments cannot be asked
    """
    try:
        return env.has_attr(name)
    except NotImplementedError:
        return False


def has_own_env_method(wrapper: VecEnvWrapper) -> bool:
    """
    Whether a wrapper may change what methods of the environments return.

    :param wrapper: around other VecEnvs
    :return: False if its ``env_method`` is SB3's, which hands the call on
    """
    return type(wrapper).env_method is not VecEnvWrapper.env_method or "env_method" in vars(wrapper)


def holds_masks(infos: Sequence[Info]) -> bool:
    """
    Whether infos hold masks.

    :param infos: of all environments
    :return: True if each of them does
    """
    return all(INFO in info for info in infos)
