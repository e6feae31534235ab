"""
Arrays that passes use again.

The operating system gives new memory page by page at the first touch. For passes as short as these that costs as much as the
mathematics, so a caller who makes one pass after another hands the same memory to each.
"""

import math
from typing import Generic

from sb3_policyopt.maths.arrays import ArrayT, empty
from sb3_policyopt.maths.recurrence.packing import Packing

EVERYTHING = slice(None)


class LayerWorkspace(Generic[ArrayT]):
    """
    Arrays of one layer by name.

    :param like: gives library, dtype and device
    """

    def __init__(self, like: ArrayT) -> None:
        self.like: ArrayT = like[:0]
        self._pools: dict[str, ArrayT] = {}
        self._arrays: dict[str, ArrayT] = {}
        self._blocks: dict[str, tuple[ArrayT, Packing, list[ArrayT]]] = {}

    def array(self, name: str, *shape: int) -> ArrayT:
        """
        The array of a name; its memory is that of earlier calls if that is large enough.

        :param name: of the array
        :param shape: of the array
        :return: with whatever the memory held before
        """
        found = self._arrays.get(name)
        if found is None or tuple(found.shape) != shape:
            size = math.prod(shape)
            if name not in self._pools or len(self._pools[name]) < size:
                self._pools[name] = empty(self.like, size)
            found = self._pools[name][:size].reshape(shape)
            self._arrays[name] = found
        return found

    def blocks(self, name: str, array: ArrayT, packing: Packing, part: int | slice = EVERYTHING) -> list[ArrayT]:
        """
        An array's blocks by time; those of an earlier call if array and packing are the same objects.

        :param name: of the blocks
        :param array: from :meth:`array`
        :param packing: of the sequences
        :param part: which part of the array's first axis is meant
        :return: see :meth:`Packing.blocks`
        """
        found = self._blocks.get(name)
        if found is None or found[0] is not array or found[1] is not packing:
            found = (array, packing, packing.blocks(array[part]))
            self._blocks[name] = found
        return found[2]


class Workspace(Generic[ArrayT]):
    """Arrays of the passes of one network, one pass at a time: a pass ends when the next one begins."""

    def __init__(self) -> None:
        self.passes = 0
        """How many have begun."""
        self._layers: list[LayerWorkspace[ArrayT]] = []

    def layer(self, number: int, like: ArrayT) -> LayerWorkspace[ArrayT]:
        """
        :param number: of the layer; those before it were asked for earlier
        :param like: gives library, dtype and device
        :return: its arrays
        """
        if len(self._layers) <= number or not _same_kind(self._layers[number].like, like):
            self._layers[number:] = [LayerWorkspace(like)]
        return self._layers[number]


def _same_kind(one: ArrayT, other: ArrayT) -> bool:
    devices = [getattr(array, "device", None) for array in (one, other)]  # arrays of NumPy 1 have none
    return type(one) is type(other) and one.dtype == other.dtype and devices[0] == devices[1]
