"""Pickles in which some objects are replaced by where they are, as they stay when a state is restored."""

import io
import pickle
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple


class Pickled(NamedTuple):
    """
    A value as bytes.

    :param content: the bytes
    :param met: places of the objects that stay to which it refers
    """

    content: bytes
    met: set[Hashable]


class _Pickler(pickle.Pickler):
    """See :func:`pickled`."""

    def __init__(self, file: io.BytesIO, places: Mapping[int, Hashable], refuse: Callable[[object], str | None]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.places, self.refuse = places, refuse
        self.met: set[Hashable] = set()

    def persistent_id(self, obj: object) -> Hashable | None:
        """
        Called for every object that is about to be pickled.

        :param obj: the object
        :return: its place, None to pickle it
        :raises pickle.PicklingError: if its pickle would not hold its state, or a copy of it would replace the original
        """
        place = self.places.get(id(obj))
        if place is not None:
            self.met.add(place)
        elif reason := self.refuse(obj):
            raise pickle.PicklingError(reason)
        return place


class _Unpickler(pickle.Unpickler):
    """See :func:`unpickled`."""

    def __init__(self, file: io.BytesIO, things: Mapping[Hashable, object]) -> None:
        super().__init__(file)
        self.things = things

    def persistent_load(self, pid: Hashable) -> object:
        """
        Called for every place.

        :param pid: the place
        :return: the object there
        :raises pickle.UnpicklingError: if there is none
        """
        if pid not in self.things:
            raise pickle.UnpicklingError(f"there is nothing at {pid}")
        return self.things[pid]


def pickled(value: object, places: Mapping[int, Hashable], refuse: Callable[[object], str | None]) -> Pickled:
    """
    A value as bytes.

    :param value: anything
    :param places: of the objects that stay, by their identity
    :param refuse: why an object that does not stay must not be pickled; None if it may be
    :return: the bytes, and which of the objects that stay it refers to
    :raises Exception: if it cannot be pickled; a class may raise anything
    """
    file = io.BytesIO()
    pickler = _Pickler(file, places, refuse)
    pickler.dump(value)
    return Pickled(file.getvalue(), pickler.met)


def unpickled(content: bytes, things: Mapping[Hashable, object]) -> object:
    """
    The value of :func:`pickled`.

    :param content: the bytes
    :param things: the objects that stay, by their places
    :return: the value
    :raises pickle.UnpicklingError: if one of them is not there
    """
    return _Unpickler(io.BytesIO(content), things).load()
