"""
Objects that are there when a training begins. They stay when a state is restored, as others may refer to them (an optimizer to
its parameters, two callbacks to one schedule), and take over what they held.
"""

import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.saving.env_state import capture_env, restore_env

Place: TypeAlias = tuple[str | int, ...]
"""Where an object was found: the name of the one where the search began, then attributes and numbers of items."""

Exclude: TypeAlias = Collection[str | tuple[str, str]]
"""Attributes to leave out: of all objects, or of one, as its name and the attribute's."""

KEPT_ELSEWHERE = (BaseAlgorithm, BaseCallback, Logger, VecEnv)
"""Models, environments, callbacks and loggers, whose state is kept in other ways."""

LEARNERS = (nn.Module, th.optim.Optimizer, gym.Env)
"""What is never copied, and whose loss is told."""

MANY = 1000
"""A container with more items is kept as one value, without looking for objects in it."""

_NEW = object().__reduce_ex__(2)[0]
"""The function by which pickle makes an object of which it stores attributes only (``copyreg.__newobj__``)."""


class Kind(NamedTuple):
    """
    How objects of some classes give and take what they hold.

    :param classes: theirs
    :param subclasses: whether those of subclasses count, too
    :param give: an object ↦ what it holds
    :param take: an object, and what it shall hold
    """

    classes: tuple[type, ...]
    subclasses: bool
    give: Callable[[Any], Any]
    take: Callable[[Any, Any], object]


def _on_cpu(value: Any) -> Any:
    """A ``state_dict`` whose tensors can be read where there is no GPU; it is loaded to the device of the parameters."""
    if isinstance(value, th.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


def _take_tensor(tensor: th.Tensor, value: th.Tensor) -> None:
    if tensor.shape == value.shape:
        with th.no_grad():
            tensor.copy_(value)
    else:
        tensor.data = value.to(tensor.device)


def _take_array(array: NumpyArray, value: NumpyArray) -> None:
    if array.shape != value.shape:
        raise ValueError(f"its shape is {array.shape}, and was {value.shape}")
    array[...] = value


def _take_items(items: Any, value: Any) -> None:
    items.clear()
    (items.extend if isinstance(items, (list, deque)) else items.update)(value)


KINDS = (
    Kind((nn.Module, th.optim.Optimizer), True, lambda x: _on_cpu(x.state_dict()), lambda x, value: x.load_state_dict(value)),
    Kind((th.Tensor,), True, lambda x: x.detach().cpu().clone(), _take_tensor),
    Kind((gym.Env,), True, capture_env, restore_env),
    Kind((np.ndarray,), False, np.copy, _take_array),
    Kind((np.random.Generator,), False, lambda x: x.bit_generator.state, lambda x, v: setattr(x.bit_generator, "state", v)),
    Kind((np.random.RandomState,), False, lambda x: x.get_state(), lambda x, value: x.set_state(value)),
    Kind((list, deque, set), False, lambda x: [*x], _take_items),
    Kind((dict, OrderedDict, defaultdict), False, lambda x: [*x.items()], _take_items),
    Kind((object,), True, lambda x: {**vars(x)}, lambda x, value: vars(x).update(value)),  # see _is_plain
)


def kind_of(thing: object) -> Kind | None:
    """
    How an object gives and takes what it holds.

    :param thing: the object
    :return: None if it is a value, which is replaced as a whole
    """
    if isinstance(thing, np.ndarray) and (thing.dtype.hasobject or not thing.flags.writeable):
        return None
    for kind in KINDS[:-1]:
        if type(thing) in kind.classes or (kind.subclasses and isinstance(thing, kind.classes)):
            return kind
    return KINDS[-1] if _is_plain(thing) else None


def give(thing: object) -> object:
    """
    What an object holds.

    :param thing: one that :func:`placed` found
    :return: its class's name and what it holds, for :func:`take`
    """
    kind = kind_of(thing)
    assert kind is not None
    return type(thing).__name__, kind.give(thing)


def take(thing: object, given: tuple[str, object]) -> None:
    """
    Give an object what another held.

    :param thing: the object
    :param given: of :func:`give`
    :raises ValueError: if it was of another class
    """
    name, held = given
    kind = kind_of(thing)
    if kind is None or type(thing).__name__ != name:
        raise ValueError(f"it was a {name}, and is a {type(thing).__name__}")
    kind.take(thing, held)


def _is_plain(thing: object) -> bool:
    """Whether pickle would store nothing of an object but its class and its attributes."""
    cls = type(thing)
    if isinstance(thing, (*KEPT_ELSEWHERE, type, types.ModuleType, types.FunctionType)):
        return False
    if (
        not hasattr(thing, "__dict__")
        or hasattr(cls, "__setstate__")
        or any(vars(base).get("__slots__") for base in cls.__mro__)
    ):
        return False
    try:
        how = thing.__reduce_ex__(2)
    except Exception:  # a class may raise anything
        return False
    if isinstance(how, str) or how[:2] != (_NEW, (cls,)) or how[3:] != (None, None):
        return False
    return how[2] is vars(thing) or (how[2] is None and not vars(thing))


def _parts(thing: object) -> Iterator[tuple[str | int, object]]:
    """The objects in an object, by attribute or number."""
    if isinstance(thing, (list, tuple, deque)) and len(thing) <= MANY:
        yield from enumerate(thing)
    elif isinstance(thing, dict) and len(thing) <= MANY:
        yield from enumerate(thing.values())
    elif kind_of(thing) is KINDS[-1]:
        yield from vars(thing).items()


def placed(roots: Mapping[str, object], exclude: Exclude = ()) -> dict[Place, object]:
    """
    Find the objects that stay.

    :param roots: objects whose attributes are searched, by a name that is the same in every run of the script
    :param exclude: attributes to leave out, of all roots, or of one by its name and the attribute's
    :return: the objects by the first place where each was found
    """
    found: dict[Place, object] = {}
    seen = {id(root) for root in roots.values()}
    left: list[tuple[Place, object]] = []
    for name, root in roots.items():
        left += [
            ((name, key), value) for key, value in vars(root).items() if key not in exclude and (name, key) not in exclude
        ]
    left.reverse()
    while left:
        place, thing = left.pop()
        if id(thing) in seen:
            continue
        if kind_of(thing) is not None:
            found[place] = thing
            seen.add(id(thing))
        if not isinstance(thing, LEARNERS):
            left += [((*place, key), part) for key, part in _parts(thing)][::-1]
    return found


def holds_learner(thing: object) -> bool:
    """
    Whether there is a network, an optimizer or an environment in an object.

    :param thing: any object
    :return: True if there is
    """
    return any(isinstance(value, LEARNERS) for value in placed({"": types.SimpleNamespace(value=thing)}).values())


def named(**found: Mapping[Place, object]) -> dict[str, object]:
    """
    Names of objects for those who know nothing of their places.

    :param found: objects by place, by the name of who has found them
    :return: the objects by name
    """
    return {f"{finder} {place}": thing for finder, things in found.items() for place, thing in things.items()}
