"""The attributes of an object that training changes; those that do not change are configuration, which the script makes."""

import warnings
from collections import deque
from collections.abc import Callable, Collection, Hashable, Mapping
from functools import partial
from typing import Any, TypedDict, cast

from sb3_policyopt.saving.pickles import Pickled, pickled, unpickled
from sb3_policyopt.saving.places import KEPT_ELSEWHERE, LEARNERS, Exclude, Place, give, holds_learner, placed, take


class Changes(TypedDict):
    """
    What has changed of some objects.

    :param attributes: pickled values by object and attribute
    :param contents: what the objects hold that were there at the start, pickled, by their places
    """

    attributes: dict[str, dict[str, bytes]]
    contents: dict[Place, bytes]


NOTHING: Changes = {"attributes": {}, "contents": {}}
"""No changes of no object."""


def _refuse(obj: object) -> str | None:
    """Why a copy of an object must not replace it."""
    return f"{type(obj).__name__} is not copied" if isinstance(obj, (*KEPT_ELSEWHERE, *LEARNERS)) else None


def _try_to_pickle(value: object, places: Mapping[int, Place]) -> Pickled | None:
    """A value as bytes; None if it cannot be pickled."""
    try:
        return pickled(value, places, _refuse)
    except Exception:  # a class may raise anything
        return None


def reached(start: Pickled | None, contents: Mapping[Place, Pickled]) -> set[Place] | None:
    """
    The objects that stay to which a value refers, and those to which they refer.

    :param start: the value
    :param contents: what the objects hold
    :return: their places; None if the value, or what one of them holds, could not be pickled
    """
    if start is None:
        return None
    found: set[Place] = set()
    left = [start]
    while left:
        new = cast("set[Place]", left.pop().met) - found
        if not new <= contents.keys():
            return None
        found |= new
        left += [contents[place] for place in new]
    return found


def _held(thing: object, places: Mapping[int, Place]) -> Pickled | None:
    """What an object that stays holds; None if it cannot be kept."""
    try:
        given = give(thing)
    except Exception:  # an environment, for one
        return None
    return _try_to_pickle(given, places)


def _items(value: object) -> object:
    """What a container holds, as far as it can be compared; None for anything else."""
    if not isinstance(value, (dict, list, set, deque)):
        return None
    items = _try_to_pickle([*value.items()] if isinstance(value, dict) else [*value], {})
    return len(value) if items is None else items.content


class ChangingAttributes:
    """
    The attributes of some objects that differ from what they were when this was made.

    Objects that are there at that time stay when a state is restored, and take over what they held: whoever else refers to
    them sees it. Of networks, optimizers and environments that is their state. References to models, VecEnvs, callbacks and
    loggers are ignored, whose state is kept in other ways. Other attributes that cannot be pickled are ignored, too; of those
    that gather data (a dictionary, a list, ...) and have changed, and of those with a network, a warning tells.

    :param objects: by a name that is the same in every run of the script
    :param exclude: attributes to ignore, of all objects, or of one by its name and the attribute's
    """

    def __init__(self, objects: Mapping[str, object], exclude: Exclude = ()) -> None:
        self.objects = dict(objects)
        self.exclude = frozenset(exclude)
        self.told: set[str] = set()
        self.things = placed(objects, exclude)
        self.places = {id(thing): place for place, thing in self.things.items()}
        self.before = self._everything()
        #: The objects that stay and that the last :meth:`state` has kept.
        self.kept: dict[Place, object] = {}
        self.items_before = {key: _items(value) for key, value in self._lost(self.before).items()}

    def _values(self) -> dict[tuple[str, str], object]:
        return {
            (name, key): value
            for name, thing in self.objects.items()
            for key, value in vars(thing).items()
            if key not in self.exclude and (name, key) not in self.exclude
        }

    def _everything(self) -> Changes:
        """All that can be kept: an attribute with all the objects to which it refers, or not at all."""
        values = self._values()
        things = dict(self.things)
        things.update({place: value for place, value in values.items() if self._replaces(place, value)})
        places = {**self.places, **{id(thing): place for place, thing in things.items()}}
        held = {place: _held(thing, places) for place, thing in things.items()}
        contents = {place: content for place, content in held.items() if content is not None}
        found: Changes = {"attributes": {name: {} for name in self.objects}, "contents": {}}
        for (name, key), value in values.items():
            attribute = _try_to_pickle(value, places)
            met = reached(attribute, contents)
            if attribute is not None and met is not None:
                found["attributes"][name][key] = attribute.content
                found["contents"] |= {place: contents[place].content for place in met}
        return found

    def _replaces(self, place: Place, value: object) -> bool:
        """Whether a network stands where another of its class did at the start, which takes over what it holds."""
        return isinstance(value, LEARNERS) and id(value) not in self.places and type(self.things.get(place)) is type(value)

    def state(self) -> Changes:
        """
        What has changed.

        :return: for :meth:`restore`
        """
        now, before = self._everything(), self.before
        self.kept = {place: self.things[place] for place in now["contents"] if place in self.things}
        self._tell_of_lost(now)
        return {
            "attributes": {
                name: {key: content for key, content in kept.items() if before["attributes"][name].get(key) != content}
                for name, kept in now["attributes"].items()
            },
            "contents": {place: held for place, held in now["contents"].items() if before["contents"].get(place) != held},
        }

    def _lost(self, kept: Changes) -> dict[tuple[str, str], object]:
        """The attributes that are not kept."""
        return {(name, key): value for (name, key), value in self._values().items() if key not in kept["attributes"][name]}

    def _tell_of_lost(self, kept: Changes) -> None:
        """Warn once of each attribute that cannot be kept and has changed, or has a network."""
        for (name, key), value in self._lost(kept).items():
            full = f"{type(self.objects[name]).__name__}.{key}"
            if full in self.told or not (holds_learner(value) or _items(value) != self.items_before.get((name, key))):
                continue
            self.told.add(full)
            warnings.warn(
                f"{full} cannot be kept in a checkpoint, as it cannot be pickled (does it hold a lambda, an open file, or a "
                "network that was made during the training?): a resumed run starts with what the script gives it"
            )

    def restore(self, state: Changes, without: Collection[tuple[str, str]] = ()) -> None:
        """
        Restore what had changed. What the script no longer has is left out with a warning.

        :param state: of objects by the same names; other objects are not changed
        :param without: objects and attributes to leave as they are
        """
        for place, content in state["contents"].items():
            self._restore_one(place, content, partial(self._take, place), without)
        for name, changes in state["attributes"].items():
            for key, content in changes.items():
                self._restore_one((name, key), content, partial(self._assign, name, key), without)

    def _restore_one(
        self, place: Place, content: bytes, put: Callable[[Any], None], without: Collection[tuple[str, str]]
    ) -> None:
        name = str(place[0])
        if name not in self.objects or place[:2] in without:
            return
        try:
            put(unpickled(content, cast("Mapping[Hashable, object]", self.things)))
        except Exception as error:  # a class may raise anything
            full = ".".join(map(str, (type(self.objects[name]).__name__, *place[1:])))
            warnings.warn(f"{full} starts afresh, as it is not there yet, or is of another kind now: {error}")

    def _take(self, place: Place, held: Any) -> None:
        if place not in self.things:
            raise ValueError("there is nothing of that name")
        take(self.things[place], held)

    def _assign(self, name: str, key: str, value: Any) -> None:
        vars(self.objects[name])[key] = value
