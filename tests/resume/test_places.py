"""Which objects stay when a state is restored, and take over what they held; all others are replaced by copies."""

import pickle
import queue
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict, UserDict, defaultdict, deque
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_policyopt.saving.attributes import ChangingAttributes
from sb3_policyopt.saving.places import give, kind_of, take

T = TypeVar("T")


class Plain:
    def __init__(self, number: float = 0) -> None:
        self.number = number


class Abstract(ABC):
    @abstractmethod
    def method(self) -> None: ...


class Derived(Abstract, Generic[T]):
    def __init__(self, number: float = 0) -> None:
        self.number = number

    def method(self) -> None: ...


class Slotted:
    __slots__ = ("__dict__", "number")


class OwnState(Plain):
    def __getstate__(self) -> dict[str, Any]:
        return {"number": -1}


class OwnWay(Plain):
    def __setstate__(self, state: Any) -> None: ...


class MyList(list[int]): ...


class Number(float): ...


def adam(weight: float) -> th.optim.Optimizer:
    parameter = th.nn.Parameter(th.full((2,), weight))
    parameter.grad = th.full((2,), weight)
    optimizer = th.optim.Adam([parameter])
    optimizer.step()
    return optimizer


STAY: list[tuple[Any, Any]] = [
    (th.nn.Linear(2, 1), th.nn.Linear(2, 1)),
    (adam(1.0), adam(2.0)),
    (th.zeros(2), th.ones(2)),
    (th.zeros(2), th.ones(3)),
    (th.nn.Parameter(th.zeros(2)), th.nn.Parameter(th.ones(2))),
    (gym.make("CartPole-v1"), gym.make("CartPole-v1")),
    (np.zeros(3), np.ones(3)),
    (np.random.default_rng(0), np.random.default_rng(1)),
    (np.random.RandomState(0), np.random.RandomState(1)),
    ([1], [2, 3]),
    (deque([1], maxlen=2), deque([2, 3])),
    ({1}, {2, 3}),
    ({"a": 1}, {"b": 2}),
    (OrderedDict(a=1), OrderedDict(b=2)),
    (defaultdict(int, a=1), defaultdict(lambda: 0, b=2)),
    (UserDict(a=1), UserDict(b=2)),
    (Plain(1), Plain(2)),
    (Derived(1), Derived(2)),
]
REPLACED: list[Any] = [
    1,
    "a",
    None,
    (1,),
    Slotted(),
    OwnState(),
    OwnWay(),
    MyList(),
    Number(),
    Plain,
    len,
    th,
    SimpleNamespace(),
]


@pytest.mark.parametrize(("old", "new"), STAY, ids=lambda thing: type(thing).__name__)
def test_what_stays_takes_over_what_the_other_held(old: Any, new: Any) -> None:
    for env in (thing for thing in (old, new) if isinstance(thing, gym.Env)):
        env.reset(seed=0 if env is old else 1)
    held = pickle.dumps(give(new))
    take(old, pickle.loads(held))
    assert str(give(old)) == str(pickle.loads(held)) or isinstance(old, gym.Env)
    if isinstance(old, gym.Env):
        np.testing.assert_array_equal(old.step(0)[0], new.step(0)[0])


@pytest.mark.parametrize("thing", REPLACED, ids=lambda thing: type(thing).__name__)
def test_what_pickle_stores_in_another_way_is_replaced(thing: Any) -> None:
    assert kind_of(thing) is None


def test_constants_and_arrays_of_objects_are_replaced() -> None:
    constant = np.zeros(2)
    constant.flags.writeable = False
    assert kind_of(constant) is None and kind_of(np.array([None])) is None


def test_another_class_or_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="it was a list, and is a dict"):
        take({}, ("list", [1]))
    with pytest.raises(ValueError, match=r"its shape is \(2, 3\), and was \(3,\)"):
        take(np.zeros((2, 3)), ("ndarray", np.zeros(3)))


@pytest.mark.parametrize("part", [threading.Lock(), threading.Thread(), queue.Queue(), lambda: 0])
def test_an_object_is_kept_as_a_whole_or_not_at_all(part: Any) -> None:
    """One with a lock or a thread belongs to its process: the script makes it again."""
    owner = SimpleNamespace(plain=Plain(), working=Plain())
    owner.working.part = part
    attributes = ChangingAttributes({"owner": owner})
    owner.plain.number = owner.working.number = 1
    state = attributes.state()
    owner.plain.number = owner.working.number = 0
    attributes.restore(state)
    assert (owner.plain.number, owner.working.number) == (1, 0)


def test_objects_that_refer_to_each_other() -> None:
    owner = SimpleNamespace(first=Plain(), second=Plain())
    owner.first.other, owner.second.other = owner.second, owner.first
    attributes = ChangingAttributes({"owner": owner})
    first, second = owner.first, owner.second
    owner.first, owner.second, second.number = second, first, 5
    state = attributes.state()
    owner.first, owner.second, second.number = first, second, 0
    attributes.restore(state)
    assert owner.first is second and owner.second is first and second.number == 5 and second.other is first
