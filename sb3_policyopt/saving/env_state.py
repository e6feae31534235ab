"""
The state of one environment: wrappers, physics, time limits and random generators.

Every attribute of every wrapper is kept. Objects that hold their state outside of Python (a Box2D world, the Arcade Learning
Environment) are kept if the environment has the methods ``get_state`` and ``set_state``, or ``clone_state`` and
``restore_state``.
"""

import inspect
import pickle
import sys
import types
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, TypedDict, cast

import gymnasium as gym
import numpy as np

from sb3_policyopt.errors import StateNotKeptError
from sb3_policyopt.saving.pickles import pickled, unpickled

Env: TypeAlias = gym.Env[Any, Any]
"""An environment with any observations and actions."""

Place: TypeAlias = tuple[int, str | None]
"""Where an object is: number of the layer and attribute; None for the layer itself."""

NOWHERE: Mapping[int, str] = types.MappingProxyType({})
NOTHING_ELSE: Mapping[str, object] = types.MappingProxyType({})
"""For environments that share no object with anything that is kept elsewhere."""

STATE_METHODS = (("get_state", "set_state"), ("clone_state", "restore_state"))

IGNORED = frozenset(
    (
        *("spec", "_cached_spec", "metadata", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"),
        *("screen", "clock", "surf", "viewer", "window", "mujoco_renderer", "results_writer"),
    )
)
"""Attributes that show, describe or log an environment, or repeat the arguments with which it was made."""

_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type)
"""Functions, modules and classes are configuration: the script has made them again."""

_HANDLES = ("pybullet", "pybullet_utils", "pybullet_envs")
"""Packages whose objects refer to a simulation outside of Python, and are pickled without its state."""


class ClonesState(Protocol):
    """An environment of the Arcade Learning Environment."""

    def clone_state(self, *, include_rng: bool) -> object:
        """
        Its state.

        :param include_rng: whether with the random generator
        """


class MujocoEnv(Protocol):
    """
    A layer that holds MuJoCo's structures.

    :param model: MjModel
    """

    model: object


class EnvState(TypedDict):
    """
    What is pickled of an environment.

    :param layers: names of the classes, outermost first
    :param attributes: of each layer, by name
    :param offered: by number of the layer, the method that restores a state, and the state
    :param mujoco: pickles of MuJoCo's structures
    """

    layers: list[str]
    attributes: list[dict[str, object]]
    offered: dict[int, tuple[str, object]]
    mujoco: dict[Place, bytes]


def layers(env: Env) -> list[Env]:
    """
    An environment and what it wraps.

    :param env: the outermost wrapper
    :return: outermost first
    """
    found = [env]
    while isinstance(found[-1], gym.Wrapper):
        found.append(found[-1].env)
    return found


def _is_mujoco(value: object) -> bool:
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(value, (mujoco.MjModel, mujoco.MjData))


def _attributes(layer: Env) -> dict[str, object]:
    return {name: value for name, value in vars(layer).items() if name not in IGNORED and not isinstance(value, _CODE)}


class Placed(NamedTuple):
    """
    An object that is not replaced when a state is restored.

    :param place: where it is
    :param thing: the object
    """

    place: Place
    thing: object


def _placed(stack: list[Env]) -> Iterator[Placed]:
    """
    Objects that are not replaced: the wrappers, and MuJoCo's structures, which renderers refer to.

    :param stack: the layers
    :return: the objects with their places
    """
    for number, layer in enumerate(stack):
        yield Placed((number, None), layer)
        for name, value in vars(layer).items():
            if _is_mujoco(value):
                yield Placed((number, name), value)


def _refuse(obj: object) -> str | None:
    """Why the pickle of an object would not hold its state."""
    if isinstance(obj, gym.utils.EzPickle):
        return f"{type(obj).__name__} is pickled without its state"
    # A descriptor, not a name, where the class is that of Cython's functions (Python 3.10).
    module: object = type(obj).__module__
    if isinstance(module, str) and module.partition(".")[0] in _HANDLES:
        return f"{type(obj).__name__} points to a simulation outside Python"
    return None


def capture_env(env: Env, elsewhere: Mapping[int, str] = NOWHERE) -> bytes:
    """
    The state of one environment.

    :param env: the outermost wrapper
    :param elsewhere: names of objects that are kept elsewhere, by their identity
    :return: for :func:`restore_env`
    :raises StateNotKeptError: if a part of it can be neither pickled nor read by a method
    """
    stack = layers(env)
    places: dict[int, Hashable] = {**elsewhere, **{id(thing): place for place, thing in _placed(stack)}}
    attributes: list[dict[str, object]] = []
    offered: dict[int, tuple[str, object]] = {}
    for number, layer in enumerate(stack):
        kept: dict[str, object] = {}
        for get_state, set_state in STATE_METHODS:
            if _takes(layer, get_state, 0) and _takes(layer, set_state, 1):
                offered[number] = (set_state, _state_of(layer, get_state))
                break
        for name, value in _attributes(layer).items():
            try:
                pickled(value, places, _refuse)
            except Exception as error:  # a class may raise anything
                if number not in offered:
                    reason = f"{type(layer).__name__}.{name} ({type(value).__name__}) cannot be pickled: {error}"
                    raise StateNotKeptError(reason) from error
            else:
                kept[name] = value
        attributes.append(kept)
    content: EnvState = {
        "layers": [_name(layer) for layer in stack],
        "attributes": attributes,
        "offered": offered,
        "mujoco": {place: pickle.dumps(thing) for place, thing in _placed(stack) if place[1] is not None},
    }
    try:
        return pickled(content, places, _refuse).content
    except Exception as error:
        raise StateNotKeptError(
            f"what {type(env.unwrapped).__name__} gives as its state cannot be pickled: {error}"
        ) from error


def _takes(layer: Env, method: str, n_arguments: int) -> bool:
    """
    Whether the class of a layer has a method that can be called so: Gymnasium's MuJoCo environments have a ``set_state`` of
    positions and velocities.

    :param layer: a wrapper or the environment
    :param method: its name
    :param n_arguments: positional arguments
    :return: True if it can, also where the method does not say what it takes
    """
    if not hasattr(type(layer), method):
        return False
    try:
        inspect.signature(getattr(layer, method)).bind(*range(n_arguments))
    except TypeError:
        return False
    except ValueError:  # a function in another language
        return True
    return True


def _state_of(layer: Env, method: str) -> object:
    """
    The state that a method of an environment returns, with the random generators if the method has that option.

    :param layer: the environment
    :param method: its name
    :return: what it returns
    """
    if method == "clone_state":
        return cast(ClonesState, layer).clone_state(include_rng=True)
    return getattr(layer, method)()


def _name(layer: Env) -> str:
    """
    The class of a layer. Importing rl-zoo3 replaces ``TimeLimit`` by a subclass with the same attributes, which counts as
    ``TimeLimit``: a run of the zoo may be continued by a script.

    :param layer: a wrapper or the environment
    :return: the class's name
    """
    return next(base.__name__ for base in type(layer).__mro__ if base.__module__ != "rl_zoo3.gym_patches")


def restore_env(env: Env, state: bytes, elsewhere: Mapping[str, object] = NOTHING_ELSE) -> None:
    """
    Give an environment the state of another.

    :param env: made in the same way
    :param state: of :func:`capture_env`
    :param elsewhere: the objects that are kept elsewhere, by name
    :raises ValueError: if it is wrapped in another way
    """
    stack = layers(env)
    things = dict(_placed(stack))
    known: dict[Hashable, object] = dict(elsewhere.items())
    known.update(things)
    content = cast(EnvState, unpickled(state, known))
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


def _copy_mujoco(source: object, target: object, layer: Env) -> None:
    """
    Copy MuJoCo's model (which a task may vary) or its data into the structure that is in use.

    :param source: MjModel or MjData
    :param target: of the same kind and sizes
    :param layer: the environment that holds them
    """
    import mujoco

    if isinstance(source, mujoco.MjData):
        mujoco.mj_copyData(target, cast(MujocoEnv, layer).model, source)
        return
    _copy_fields(source, target)
    # Options such as the time step are numbers, not arrays.
    _copy_fields(getattr(source, "opt", None), getattr(target, "opt", None), numbers=True)


def _copy_fields(source: object, target: object, numbers: bool = False) -> None:
    """
    Copy the public arrays of one of MuJoCo's structures into another, in place.

    :param source: a structure
    :param target: of the same kind and sizes
    :param numbers: whether to copy single numbers, too
    """
    for name in (name for name in dir(source) if not name.startswith("_")):
        value: object = getattr(source, name)
        if isinstance(value, np.ndarray):
            getattr(target, name)[...] = value
        elif numbers and isinstance(value, (int, float)):
            setattr(target, name, value)
