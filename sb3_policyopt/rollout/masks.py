"""Where the masks of allowed actions come from, and whether they are masks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

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
        self._ask = self._asking_function()
        self.last: Any = last
        if self.holder is not None and last is None:
            self.last = self._of_infos(self.holder.reset_infos)

    def _asking_function(self) -> Callable[[], Any]:
        """
        Find the masks once.

        :return: () ↦ the masks for the environments' current observations, not checked
        """
        layers: list[Any] = [self.env]
        while isinstance(layers[-1], VecEnvWrapper):
            layers.append(layers[-1].venv)
        for layer in layers:  # one by one, as a wrapper refuses a name that two others have
            own = getattr(layer, METHOD) if METHOD in vars(layer) or hasattr(type(layer), METHOD) else None
            if callable(own):
                return own
        if environments_have(self.env, METHOD):
            if asks_environments(self.env):
                methods = [env.get_wrapper_attr(METHOD) for env in layers[-1].envs]
                return lambda: [method() for method in methods]
            return lambda: self.env.env_method(METHOD)
        self.holder = next((layer for layer in layers if holds_masks(layer.reset_infos)), None)  # SB3's wrappers have none
        if self.holder is None and self.used:
            raise ValueError(WITHOUT)
        return lambda: self.last

    def current(self, step: int) -> NumpyArray:
        """
        The masks for the environments' current observations.

        :param step: number of the step in the rollout, for the message
        :return: bool, shape (n_envs, n_choices), with memory of its own, as environments may change theirs in their step
        :raises ValueError: if they are no masks; the message names the environment and the step
        """
        given = self._ask()
        try:
            masks = np.array(given).reshape(self.shape)
        except ValueError as error:
            raise self._wrong_shape(given, step) from error
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

    def _wrong_shape(self, given: Any, step: int) -> ValueError:
        """
        The error about a mask of another length.

        :param given: what the environments gave
        :param step: number of the step in the rollout
        :return: the error
        """
        sizes = [np.size(mask) for mask in given]
        environment = next((i for i, size in enumerate(sizes) if size != self.shape[1]), 0)
        found = np.shape(given[environment]) if environment < len(given) else None
        return ValueError(
            f"The action mask of environment {environment} at step {step} of the rollout has the shape {found}, but the "
            f"action space needs {self.shape[1]} entries"
        )


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


def asks_environments(env: VecEnv) -> bool:
    """
    Whether ``env_method`` only calls the method of each environment of a DummyVecEnv, so that the calls can be made directly.

    :param env: the training environments
    :return: False if a wrapper or a subclass has another ``env_method``, which may change what it returns
    """
    while isinstance(env, VecEnvWrapper):
        if type(env).env_method is not VecEnvWrapper.env_method or "env_method" in vars(env):
            return False
        env = env.venv
    return type(env) is DummyVecEnv and "env_method" not in vars(env)


def holds_masks(infos: Sequence[Info]) -> bool:
    """
    Whether infos hold masks.

    :param infos: of all environments
    :return: True if each of them does
    """
    return all(INFO in info for info in infos)
