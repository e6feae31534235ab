"""
The state of vectorised environments. It is captured and restored where the environments are, which may be the worker processes
of a ``SubprocVecEnv``.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypedDict, cast

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_policyopt.errors import StateNotKeptError
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.saving.env_state import NOTHING_ELSE, NOWHERE, Env, capture_env, restore_env

CAPTURE = "capture_training_state"
RESTORE = "restore_training_state"


class _Install:
    """When this is unpickled in a worker process, every environment there has the two methods of :func:`install`."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return install, ()


def install() -> None:
    """Add two methods to ``gym.Env``, by which ``VecEnv.env_method`` calls :func:`capture_env` and :func:`restore_env`."""
    for name, method in ((CAPTURE, _capture_or_reason), (RESTORE, _restore_or_reason)):
        setattr(gym.Env, name, method)


def _capture_or_reason(env: Env, elsewhere: Mapping[int, str] = NOWHERE) -> bytes | str:
    """The state; after a failure its reason as text, because an exception would end the worker process."""
    try:
        return capture_env(env, elsewhere)
    except Exception as error:
        return str(error)


def _restore_or_reason(env: Env, state: bytes, elsewhere: Mapping[str, object] = NOTHING_ELSE) -> str | None:
    """The reason of a failure, None after a success."""
    try:
        restore_env(env, state, elsewhere)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


class StatefulVecEnv(Protocol):
    """A ``VecEnv`` that can give and take the state of its environments."""

    def get_state(self) -> object:
        """The state of all environments."""

    def set_state(self, state: object) -> None:
        """
        Restore the state of all environments.

        :param state: of :meth:`get_state`
        """


class VecEnvContent(TypedDict):
    """
    What is kept of a ``DummyVecEnv`` or a ``SubprocVecEnv``.

    :param states: of each environment
    :param seeds: for the next reset, of each environment
    :param options: for the next reset, of each environment
    """

    states: list[bytes]
    seeds: list[int | None]
    options: list[dict[str, object]]


class VecEnvState:
    """
    The state of vectorised environments behind their wrappers.

    :param venv: the outermost wrapper
    """

    wrapper_attributes: ClassVar[tuple[str, ...]] = ("venv", "class_attributes", "results_writer")

    def __init__(self, venv: VecEnv) -> None:
        self.wrappers: list[VecEnvWrapper] = []
        while isinstance(venv, VecEnvWrapper):
            self.wrappers.append(venv)
            venv = venv.venv
        self.venv = venv
        if isinstance(venv, (DummyVecEnv, SubprocVecEnv)):
            install()
            venv.set_attr("_training_state_methods", _Install())

    def capture(self, elsewhere: Mapping[int, str] = NOWHERE) -> object:
        """
        The state of the environments; the wrappers around the VecEnv are kept elsewhere.

        :param elsewhere: names of objects that are kept elsewhere, by their identity; environments in this process may have
            them, too
        :return: for :meth:`restore`
        :raises StateNotKeptError: if one of them cannot be kept
        """
        if not isinstance(self.venv, (DummyVecEnv, SubprocVecEnv)):
            if hasattr(self.venv, "get_state") and hasattr(self.venv, "set_state"):
                return cast(StatefulVecEnv, self.venv).get_state()
            raise StateNotKeptError(f"{type(self.venv).__name__} offers no get_state and set_state")
        states: list[bytes | str] = self.venv.env_method(CAPTURE, *self._if_here(elsewhere))
        for state in states:
            if isinstance(state, str):
                raise StateNotKeptError(state)
        return {"states": states, "seeds": list(self.venv._seeds), "options": list(self.venv._options)}

    def _if_here(self, elsewhere: Mapping[Any, Any]) -> list[Mapping[Any, Any]]:
        """Objects that are kept elsewhere, if the environments are in this process."""
        return [elsewhere] if isinstance(self.venv, DummyVecEnv) else []

    def restore(self, state: object, elsewhere: Mapping[str, object] = NOTHING_ELSE) -> None:
        """
        Give the environments the state that they had.

        :param state: of :meth:`capture`
        :param elsewhere: the objects that are kept elsewhere, by name
        :raises ValueError: if it does not fit
        """
        if not isinstance(self.venv, (DummyVecEnv, SubprocVecEnv)):
            cast(StatefulVecEnv, self.venv).set_state(state)
            return
        content = cast(VecEnvContent, state)
        self.venv._seeds, self.venv._options = content["seeds"], content["options"]  # for the next reset; most often none
        for index, env_state in enumerate(content["states"]):
            for reason in self.venv.env_method(RESTORE, env_state, *self._if_here(elsewhere), indices=index):
                if reason is not None:
                    raise ValueError(f"The state of environment {index} could not be restored: {reason}")


def start_new_episodes(model: BaseAlgorithm, seed: int) -> None:
    """
    Reset the environments of a model in the middle of a training.

    :param model: the algorithm
    :param seed: of the environments
    """
    assert model.env is not None
    model.env.seed(seed)
    model._last_obs = cast("NumpyArray | dict[str, NumpyArray]", model.env.reset())
    model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
    if model._vec_normalize_env is not None:
        model._last_original_obs = model._vec_normalize_env.get_original_obs()
