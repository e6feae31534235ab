"""
The state of environments: wrappers, physics, time limits and random generators.

Every attribute of every wrapper is kept. Objects that hold their state outside of Python (a Box2D world, the Arcade Learning
Environment) are kept if the environment has the methods ``get_state`` and ``set_state``, or ``clone_state`` and
``restore_state``.
"""

import inspect
import pickle
import types
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypedDict, cast

import gymnasium as gym

from sb3_policyopt.errors import StateNotKeptError
from sb3_policyopt.saving.mujoco_state import copy_structure, is_structure
from sb3_policyopt.saving.pickles import pickled, unpickled

Env: TypeAlias = gym.Env[Any, Any]
"""An environment with any observations and actions."""

Place: TypeAlias = tuple[int, int, str | None]
"""Where an object is: numbers of the environment and the layer, and attribute; None for the layer itself."""

NOWHERE: Mapping[int, str] = types.MappingProxyType({})
NOTHING_ELSE: Mapping[str, object] = types.MappingProxyType({})
"""For environments that share no object with anything that is kept elsewhere."""

STATE_METHODS = (("get_state", "set_state"), ("clone_state", "restore_state"))

IGNORED = frozenset(
    (
        *("spec", "_cached_spec", "metadata", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"),
        *("mujoco_renderer", "results_writer"),
    )
)
"""Attributes that show, describe or log an environment, or repeat the arguments with which it was made."""

SHOWN = frozenset(("screen", "clock", "surf", "viewer", "window"))
"""Attributes that show an environment, if their objects are pygame's or cannot be pickled; they are state otherwise."""

_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type)
"""Functions, modules and classes are configuration, which the script has made again, if they cannot be pickled."""

_HANDLES = ("pybullet", "pybullet_utils", "pybullet_envs")
"""Packages whose objects refer to a simulation outside of Python, and are pickled without its state."""


class ClonesState(Protocol):
    """An environment of the Arcade Learning Environment."""

    def clone_state(self, *, include_rng: bool) -> object:
        """
        Its state.

        :param include_rng: whether with the random generator
        """


class LayerState(TypedDict):
    """
    What is pickled of a wrapper or an environment.

    :param cls: name of the class
    :param names: of all attributes
    :param slots: of those outside of its dictionary
    :param attributes: those that are kept, by name
    :param complete: whether these are all that hold state
    :param offered: the method that restores a state, and the state; None if there is none
    """

    cls: str
    names: set[str]
    slots: set[str]
    attributes: dict[str, object]
    complete: bool
    offered: tuple[str, object] | None


class EnvsState(TypedDict):
    """
    What is pickled of environments.

    :param envs: the layers of each, outermost first
    :param mujoco: pickles of MuJoCo's structures
    """

    envs: list[list[LayerState]]
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


def _is_left_out(name: str, value: object) -> bool:
    """Whether an attribute of an environment is no state."""
    module: object = type(value).__module__
    return name in IGNORED or (name in SHOWN and isinstance(module, str) and module.partition(".")[0] == "pygame")


def _slots(layer: Env) -> dict[str, object]:
    """The attributes of a layer that classes with ``__slots__`` hold outside of its dictionary."""
    slots: Iterator[object] = (vars(base).get("__slots__", ()) for base in type(layer).__mro__)
    names = {name for found in slots for name in ([found] if isinstance(found, str) else cast("Iterable[str]", found))}
    return {name: getattr(layer, name) for name in names - {"__dict__", "__weakref__"} if hasattr(layer, name)}


def _write(layer: Env, attributes: Mapping[str, object], slots: Collection[str]) -> None:
    """
    Set attributes, also where the class of a layer does something else when one is set.

    :param layer: a wrapper or the environment
    :param attributes: by name
    :param slots: names of those outside of its dictionary
    """
    for name, value in attributes.items():
        if name in slots:
            object.__setattr__(layer, name, value)
        else:
            vars(layer)[name] = value


def _may_be_lost(name: str, value: object) -> bool:
    """Whether an attribute that cannot be pickled is none whose loss matters."""
    return name in SHOWN or isinstance(value, _CODE)


class Placed(NamedTuple):
    """
    An object that is not replaced when a state is restored.

    :param place: where it is
    :param thing: the object
    """

    place: Place
    thing: object


def _placed(stacks: Sequence[list[Env]]) -> Iterator[Placed]:
    """
    Objects that are not replaced: the wrappers, and MuJoCo's structures, which renderers refer to.

    :param stacks: the layers of each environment
    :return: the objects with their places
    """
    for index, stack in enumerate(stacks):
        for number, layer in enumerate(stack):
            yield Placed((index, number, None), layer)
            for name, value in vars(layer).items():
                if is_structure(value):
                    yield Placed((index, number, name), value)


def refuse(obj: object) -> str | None:
    """Why the pickle of an object would not hold its state."""
    if isinstance(obj, gym.utils.EzPickle):
        return f"{type(obj).__name__} is pickled without its state"
    # A descriptor, not a name, where the class is that of Cython's functions (Python 3.10).
    module: object = type(obj).__module__
    if isinstance(module, str) and module.partition(".")[0] in _HANDLES:
        return f"{type(obj).__name__} points to a simulation outside Python"
    return None


def capture_env(env: Env) -> bytes:
    """
    The state of one environment that shares no object with anything else.

    :param env: the outermost wrapper
    :return: for :func:`restore_env`
    :raises StateNotKeptError: if a part of it can be neither pickled nor read by a method
    """
    return capture_envs([env])


def capture_envs(
    envs: Sequence[Env], elsewhere: Mapping[int, str] = NOWHERE, refuse: Callable[[object], str | None] = refuse
) -> bytes:
    """
    The state of environments; objects that they share stay shared.

    :param envs: the outermost wrapper of each
    :param elsewhere: names of objects that are kept elsewhere, by their identity
    :param refuse: why the pickle of an object would not hold its state; None if it would
    :return: for :func:`restore_envs`
    :raises StateNotKeptError: if a part of one can be neither pickled nor read by a method
    """
    stacks = [layers(env) for env in envs]
    placed = [*_placed(stacks)]
    places: dict[int, Hashable] = {**elsewhere, **{id(thing): place for place, thing in placed}}
    content: EnvsState = {
        "envs": [[_layer_state(layer, places, refuse) for layer in stack] for stack in stacks],
        "mujoco": {place: pickle.dumps(thing) for place, thing in placed if place[-1] is not None},
    }
    try:
        return pickled(content, places, refuse).content
    except Exception as error:
        names = sorted({type(env.unwrapped).__name__ for env in envs})
        raise StateNotKeptError(f"what {', '.join(names)} gives as its state cannot be pickled: {error}") from error


def _layer_state(layer: Env, places: Mapping[int, Hashable], refuse: Callable[[object], str | None]) -> LayerState:
    """
    The state of a wrapper or of an environment without what it wraps.

    :param layer: the object
    :param places: of the objects that stay, by their identity
    :param refuse: why the pickle of an object would not hold its state
    :return: the state, not yet pickled
    :raises StateNotKeptError: if it can be neither pickled nor read by a method
    """
    kept: dict[str, object] = {}
    complete = True
    offered = next(
        (
            (set_state, _state_of(layer, get_state))
            for get_state, set_state in STATE_METHODS
            if _takes(layer, get_state, 0) and _takes(layer, set_state, 1)
        ),
        None,
    )
    slots = _slots(layer)
    for name, value in {**vars(layer), **slots}.items():
        if _is_left_out(name, value):
            continue
        try:
            pickled(value, places, refuse)
        except Exception as error:  # a class may raise anything
            if _may_be_lost(name, value):
                continue
            complete = False
            if offered is None:
                reason = f"{type(layer).__name__}.{name} ({type(value).__name__}) cannot be pickled: {error}"
                raise StateNotKeptError(reason) from error
        else:
            kept[name] = value
    return {
        "cls": _name(layer),
        "names": {*vars(layer)},
        "slots": {*slots},
        "attributes": kept,
        "complete": complete,
        "offered": offered,
    }


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


def restore_env(env: Env, state: bytes) -> None:
    """
    Give an environment the state of another.

    :param env: made in the same way
    :param state: of :func:`capture_env`
    :raises ValueError: if it is wrapped in another way
    """
    restore_envs([env], state)


def restore_envs(envs: Sequence[Env], state: bytes, elsewhere: Mapping[str, object] = NOTHING_ELSE) -> None:
    """
    Give environments the states of others.

    :param envs: made in the same way
    :param state: of :func:`capture_envs`
    :param elsewhere: the objects that are kept elsewhere, by name
    :raises ValueError: if one is wrapped in another way
    """
    stacks = [layers(env) for env in envs]
    things = dict(_placed(stacks))
    known: dict[Hashable, object] = dict(elsewhere.items())
    known.update(things.items())
    content = cast(EnvsState, unpickled(state, known))
    for stack, states in zip(stacks, content["envs"], strict=True):
        now, before = [_name(layer) for layer in stack][::-1], [layer["cls"] for layer in states][::-1]
        if now != before:
            raise ValueError(f"the environment is {' in '.join(now)}, but it was {' in '.join(before)}")
    for place, structure in content["mujoco"].items():
        copy_structure(pickle.loads(structure), things[place], getattr(stacks[place[0]][place[1]], "model", None))
    for stack, states in zip(stacks, content["envs"], strict=True):
        for layer, layer_state in zip(stack, states, strict=True):
            _restore_layer(layer, layer_state)


def _restore_layer(layer: Env, state: LayerState) -> None:
    """
    Restore the attributes, and what a method of the layer restores. Attributes go before the method if they do not hold all
    of the state; otherwise after it, as a method that is meant for planning may change more than it restores.

    :param layer: a wrapper or the environment
    :param state: of :func:`_layer_state`
    """
    own = vars(layer)
    shown = {name for name, value in own.items() if _is_left_out(name, value)}
    kept = {name: value for name, value in state["attributes"].items() if name not in shown}
    if not state["complete"]:
        _write(layer, kept, state["slots"])
    if state["offered"] is not None:
        set_state, offer = state["offered"]
        getattr(layer, set_state)(offer)
    if state["complete"]:
        _write(layer, kept, state["slots"])
    for name in own.keys() - state["names"] - shown:
        del own[name]
