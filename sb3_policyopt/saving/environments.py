"""
The state of vectorised environments. It is captured and restored where the environments are, which may be the worker processes
of a ``SubprocVecEnv``.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol, TypedDict, cast

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_policyopt.errors import StateNotKeptError
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.saving import generators
from sb3_policyopt.saving.env_state import NOTHING_ELSE, NOWHERE, Env, capture_envs, refuse, restore_envs
from sb3_policyopt.saving.generators import GeneratorStates

CAPTURE = "capture_training_state"
RESTORE = "restore_training_state"


class _Install:
    """When this is unpickled in a worker process, every environment there has the two methods of :func:`install`."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return install, ()


def install() -> None:
    """Add two methods to ``gym.Env``, by which ``VecEnv.env_method`` captures and restores states in a worker process."""
    for name, method in ((CAPTURE, _capture_or_reason), (RESTORE, _restore_or_reason)):
        setattr(gym.Env, name, method)


class WorkerState(NamedTuple):
    """
    The state of one environment in a worker process.

    :param env: of :func:`capture_envs`
    :param generators: the global random generators of the process
    """

    env: bytes
    generators: GeneratorStates


class _Shareable(Protocol):
    """A tensor; torch gives no type."""

    def is_shared(self) -> bool:
        """Whether other processes see the same memory."""


def _refuse_shared(obj: object) -> str | None:
    """Why the pickle of an object in a worker process would not hold its state: a copy would not change with the original."""
    if isinstance(obj, th.Tensor) and obj.device.type == "cpu" and cast(_Shareable, obj).is_shared():
        return "it holds a tensor in memory that another process shares, as that of a policy that was sent to the worker"
    return refuse(obj)


def _capture_or_reason(env: Env) -> WorkerState | str:
    """The state; after a failure its reason as text, because an exception would end the worker process."""
    try:
        return WorkerState(capture_envs([env], refuse=_refuse_shared), generators.capture())
    except Exception as error:
        return str(error)


def _restore_or_reason(env: Env, state: WorkerState) -> str | None:
    """The reason of a failure, None after a success."""
    try:
        restore_envs([env], state.env)
        generators.restore(state.generators)
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

    :param states: of all environments together if they are in this process, otherwise of each
    :param seeds: for the next reset, of each environment
    :param options: for the next reset, of each environment
    """

    states: bytes | list[WorkerState]
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
        if isinstance(venv, SubprocVecEnv):
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
        return {
            "states": self._captured(self.venv, elsewhere),
            "seeds": list(self.venv._seeds),
            "options": list(self.venv._options),
        }

    def _captured(self, venv: DummyVecEnv | SubprocVecEnv, elsewhere: Mapping[int, str]) -> bytes | list[WorkerState]:
        """The states of environments in this process, which may share objects, or of each in its own."""
        if isinstance(venv, DummyVecEnv):
            try:
                return capture_envs(venv.envs, elsewhere)
            except StateNotKeptError:
                raise
            except Exception as error:  # a method of an environment may raise anything
                raise StateNotKeptError(str(error)) from error
        states: list[WorkerState | str] = venv.env_method(CAPTURE)
        found = [state for state in states if not isinstance(state, str)]
        for reason in states:
            if isinstance(reason, str):
                raise StateNotKeptError(reason)
        return found

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
        if isinstance(self.venv, DummyVecEnv):
            try:
                restore_envs(self.venv.envs, cast(bytes, content["states"]), elsewhere)
            except Exception as error:  # a method of an environment may raise anything
                raise ValueError(
                    f"The state of the environments could not be restored: {type(error).__name__}: {error}"
                ) from error
            return
        for index, env_state in enumerate(cast("list[WorkerState]", content["states"])):
            for reason in self.venv.env_method(RESTORE, env_state, indices=index):
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
