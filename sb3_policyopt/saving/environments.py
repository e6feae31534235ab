"""
The state of the environments: wrappers, physics, time limits and random generators.

What is kept of an environment is every attribute of every one of its wrappers. Objects that hold their state out of
Python's sight (a Box2D world, the Arcade Learning Environment) are kept if the environment offers ``get_state`` and
``set_state``, or ``clone_state`` and ``restore_state``. Everything happens where the environment lives, which may be the
worker process of a ``SubprocVecEnv``.
"""

import io
import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_policyopt.errors import StateNotKeptError as StateNotKeptError

STATE_METHODS = (("get_state", "set_state"), ("clone_state", "restore_state"))

#: Attributes that show, describe or log an environment, or repeat the arguments it was made with.
IGNORED = frozenset(
    (
        *("spec", "_cached_spec", "metadata", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"),
        *("screen", "clock", "surf", "viewer", "window", "mujoco_renderer", "results_writer"),
    )
)

#: Functions and modules are configuration: the script has made them again.
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type)

#: What looks like a Python object but only points to a simulation elsewhere, and pickles without it.
_HANDLES = ("pybullet", "pybullet_utils", "pybullet_envs")


def layers(env: gym.Env[Any, Any]) -> list[gym.Env[Any, Any]]:
    """
    An environment and what it wraps.

    :param env: the outermost wrapper
    :return: outermost first
    """
    found = [env]
    while isinstance(found[-1], gym.Wrapper):
        found.append(found[-1].env)
    return found


def _is_mujoco(value: Any) -> bool:
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(value, (mujoco.MjModel, mujoco.MjData))


def _attributes(layer: gym.Env[Any, Any]) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if name not in IGNORED and not isinstance(value, _CODE)}


def _places(stack: list[gym.Env[Any, Any]]) -> Iterator[tuple[tuple[int, str | None], Any]]:
    """
    Objects that stay where they are: the wrappers, and MuJoCo's structures, which renderers refer to.

    :param stack: the layers
    :return: place (number of the layer, attribute) and object
    """
    for number, layer in enumerate(stack):
        yield (number, None), layer
        for name, value in vars(layer).items():
            if _is_mujoco(value):
                yield (number, name), value


class _Pickler(pickle.Pickler):
    """Pickles attributes; references to what stays in place become the place."""

    def __init__(self, file: io.BytesIO, places: dict[int, tuple[int, str | None]]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.places = places

    def persistent_id(self, obj: Any) -> tuple[int, str | None] | None:
        """
        Look at every object that is about to be pickled.

        :param obj: the object
        :return: its place, None to pickle it
        :raises pickle.PicklingError: if its pickle would not hold its state
        """
        if id(obj) in self.places:
            return self.places[id(obj)]
        if isinstance(obj, gym.utils.EzPickle):
            raise pickle.PicklingError(f"{type(obj).__name__} is pickled without its state")
        module = type(obj).__module__  # a descriptor, not a name, where the class is that of Cython's functions (Python 3.10)
        if isinstance(module, str) and module.partition(".")[0] in _HANDLES:
            raise pickle.PicklingError(f"{type(obj).__name__} points to a simulation outside Python")
        return None


class _Unpickler(pickle.Unpickler):
    """Puts what is in place where the pickle refers to it."""

    def __init__(self, file: io.BytesIO, things: dict[tuple[int, str | None], Any]) -> None:
        super().__init__(file)
        self.things = things

    def persistent_load(self, pid: Any) -> Any:
        """
        Look a place up.

        :param pid: what :meth:`_Pickler.persistent_id` gave
        :return: the object there
        """
        return self.things[pid]


def capture_env(env: gym.Env[Any, Any]) -> bytes:
    """
    The state of one environment.

    :param env: the outermost wrapper
    :return: for :func:`restore_env`
    :raises StateNotKeptError: if a part of it can be neither pickled nor asked for
    """
    stack = layers(env)
    places = {id(thing): place for place, thing in _places(stack)}

    def pickled(value: Any) -> bytes:
        file = io.BytesIO()
        _Pickler(file, places).dump(value)
        return file.getvalue()

    attributes, offered = [], {}
    for number, layer in enumerate(stack):
        kept = {}
        for get_state, set_state in STATE_METHODS:
            if hasattr(type(layer), get_state) and hasattr(type(layer), set_state):
                offered[number] = (set_state, _ask(layer, get_state))
                break
        for name, value in _attributes(layer).items():
            try:
                pickled(value)
            except Exception as error:  # a class may raise what it likes
                if number not in offered:
                    reason = f"{type(layer).__name__}.{name} ({type(value).__name__}) cannot be pickled: {error}"
                    raise StateNotKeptError(reason) from error
            else:
                kept[name] = value
        attributes.append(kept)
    structures = {place: pickle.dumps(thing) for place, thing in _places(stack) if place[1] is not None}
    content = {
        "layers": [_name(layer) for layer in stack],
        "attributes": attributes,
        "offered": offered,
        "mujoco": structures,
    }
    try:
        return pickled(content)
    except Exception as error:
        raise StateNotKeptError(
            f"what {type(env.unwrapped).__name__} gives as its state cannot be pickled: {error}"
        ) from error


def _ask(layer: gym.Env[Any, Any], method: str) -> Any:
    """
    The state that an environment offers, with its random generators if it makes a difference there.

    :param layer: the environment
    :param method: name of the method
    :return: what it gives
    """
    if method == "clone_state":
        return layer.clone_state(include_rng=True)  # type: ignore[attr-defined]
    return getattr(layer, method)()


def _name(layer: gym.Env[Any, Any]) -> str:
    """
    The class of a layer. Importing rl-zoo3 replaces ``TimeLimit`` by a subclass with the same attributes, which counts as
    ``TimeLimit``: a run of the zoo may go on in a script.

    :param layer: a wrapper or the environment
    :return: the class's name
    """
    return next(base.__name__ for base in type(layer).__mro__ if base.__module__ != "rl_zoo3.gym_patches")


def restore_env(env: gym.Env[Any, Any], state: bytes) -> None:
    """
    Bring an environment to where another was.

    :param env: made in the same way
    :param state: of :func:`capture_env`
    :raises ValueError: if it is wrapped in another way
    """
    stack = layers(env)
    things = dict(_places(stack))
    content = _Unpickler(io.BytesIO(state), things).load()
    names = [_name(layer) for layer in stack]
    if names != content["layers"]:
        raise ValueError(f"the environment is {' in '.join(names[::-1])}, but it was {' in '.join(content['layers'][::-1])}")
    for place, structure in content["mujoco"].items():
        _copy_mujoco(pickle.loads(structure), things[place], stack[place[0]])
    for number, layer in enumerate(stack):
        vars(layer).update(content["attributes"][number])
        if number in content["offered"]:
            set_state, offer = content["offered"][number]
            getattr(layer, set_state)(offer)


def _copy_mujoco(source: Any, target: Any, layer: Any) -> None:
    """
    Copy MuJoCo's model (which a task may vary) or its data into the structure that is in use.

    :param source: MjModel or MjData
    :param target: of the same kind and sizes
    :param layer: the environment that holds them
    """
    import mujoco

    if isinstance(source, mujoco.MjData):
        mujoco.mj_copyData(target, layer.model, source)
        return
    for saved, live in ((source, target), (source.opt, target.opt)):
        for name in dir(saved):
            value = getattr(saved, name) if not name.startswith("_") else None
            if isinstance(value, np.ndarray):
                getattr(live, name)[...] = value
            elif live is target.opt and isinstance(value, (int, float)):
                setattr(live, name, value)


# ---------------------------------------------------------------------- vectorised


class _Install:
    """Unpickling this in a worker process gives every environment there the two methods below."""

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return install, ()


def install() -> None:
    """Give ``gym.Env`` two methods, so that ``VecEnv.env_method`` reaches :func:`capture_env` and :func:`restore_env`."""
    gym.Env.capture_training_state = _capture_or_reason  # type: ignore[attr-defined]
    gym.Env.restore_training_state = _restore_or_reason  # type: ignore[attr-defined]


def _capture_or_reason(env: gym.Env[Any, Any]) -> bytes | str:
    """A worker must not die of an exception, so the reason of a failure is returned as text."""
    try:
        return capture_env(env)
    except Exception as error:
        return str(error)


def _restore_or_reason(env: gym.Env[Any, Any], state: bytes) -> str | None:
    """The reason of a failure, None after a success."""
    try:
        restore_env(env, state)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


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

    def capture(self) -> Any:
        """
        The state of the environments; the wrappers around the VecEnv are kept elsewhere.

        :return: for :meth:`restore`
        :raises StateNotKeptError: if one of them cannot be kept
        """
        if not isinstance(self.venv, (DummyVecEnv, SubprocVecEnv)):
            if hasattr(self.venv, "get_state") and hasattr(self.venv, "set_state"):
                return self.venv.get_state()
            raise StateNotKeptError(f"{type(self.venv).__name__} offers no get_state and set_state")
        states = self.venv.env_method("capture_training_state")
        for state in states:
            if isinstance(state, str):
                raise StateNotKeptError(state)
        return {"states": states, "seeds": list(self.venv._seeds), "options": list(self.venv._options)}

    def restore(self, state: Any) -> None:
        """
        Bring the environments to where they were.

        :param state: of :meth:`capture`
        :raises ValueError: if it does not fit
        """
        if not isinstance(self.venv, (DummyVecEnv, SubprocVecEnv)):
            self.venv.set_state(state)  # type: ignore[attr-defined]
            return
        self.venv._seeds, self.venv._options = state["seeds"], state["options"]  # for the next reset; most often none
        for index, env_state in enumerate(state["states"]):
            for reason in self.venv.env_method("restore_training_state", env_state, indices=index):
                if reason is not None:
                    raise ValueError(f"The state of environment {index} could not be restored: {reason}")
