"""
Sums over the processes of one host, in memory that they share.

``torch.distributed`` sends what lies on the CPU through the network even between neighbours: each message wakes a sleeping
thread on another core, twice an exchange, which takes ten times as long as adding the numbers. Here each process writes its
numbers into a mailbox that all can read, waits awake until the others have done so, and adds them all, in the order of the
ranks: the same bits everywhere.

The memory has no name in the file system, so nothing stays behind, whatever kills a process.
"""

import mmap
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CAPACITY = 2**20
"""Bytes of a mailbox. A larger message is all bandwidth, in which waiting for threads no longer counts."""

AWAKE = 0.02
"""Seconds that a process stays awake for the others before it looks only now and then whether they have come."""

NAP = 0.001
"""Seconds between two looks after that."""

WATCH = 0.2
"""Seconds after which a process that waits asks whether the others are still there."""

CACHE_LINE = 64
"""Bytes that two cores cannot write at the same time."""

let_others_go_first: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))


class Place(NamedTuple):
    """Where memory is found by other processes."""

    host: str
    process: int
    descriptor: int


def host() -> str | None:
    """
    What processes have in common that can share memory here.

    :return: the running system and its numbering of processes (a container may have its own); None where there is no memory
        without a name (not Linux), or where the order in which one core writes is not the one in which another sees it
        (not x86-64)
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return None
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")


def create(size: int) -> Place | None:
    """
    Make memory for a number of processes.

    :param size: how many
    :return: where it is, until its descriptor is closed and nobody has it open; None if it cannot be made
    """
    try:
        name = host()
        if name is None:
            return None
        descriptor = os.memfd_create("sb3_policyopt")
        os.ftruncate(descriptor, size * (CACHE_LINE + 2 * CAPACITY))
    except OSError:  # a container forbids it
        return None
    return Place(name, os.getpid(), descriptor)


def attach(place: Place | None) -> mmap.mmap | None:
    """
    Open what another process has made, or this one.

    :param place: from :func:`create`
    :return: the memory; None if it cannot be reached from here
    """
    try:
        if place is None or place.host != host():
            return None
        descriptor = os.open(f"/proc/{place.process}/fd/{place.descriptor}", os.O_RDWR)
        try:
            return mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):  # another user's process
        return None


class Mailboxes:
    """
    Two mailboxes for each rank, used by turns: whoever sees that all have sent their k-th message knows that nobody reads
    the (k − 1)-th any more, and may write the (k + 1)-th in its place.

    :param memory: from :func:`attach`, the same for all ranks
    :param rank: of this process
    :param size: number of ranks
    :param watch: called now and then while this rank waits, with the seconds that it has waited; raises an error if one of the
        others will not come
    """

    def __init__(self, memory: mmap.mmap, rank: int, size: int, watch: Callable[[float], None]) -> None:
        self.rank, self.size, self.watch = rank, size, watch
        counts = np.frombuffer(memory, np.int64, size * CACHE_LINE // 8)
        self.sent = counts.reshape(size, -1)[:, 0]  # how many messages each rank has sent
        self.boxes = np.frombuffer(memory, np.uint8, offset=counts.nbytes).reshape(2, size, CAPACITY)
        self.n_sent = 0
        self._views: dict[tuple[Any, ...], list[list[Array]]] = {}

    def _arrays(self, like: Array) -> list[Array]:
        """
        The mailboxes whose turn it is.

        :param like: a message
        :return: each rank's, of the message's shape and type
        """
        key = (like.dtype, like.shape)
        if key not in self._views:
            self._views[key] = [
                [box[: like.nbytes].view(like.dtype).reshape(like.shape) for box in boxes] for boxes in self.boxes
            ]
        return self._views[key][self.n_sent % 2]

    def reduce_(self, array: Array, combine: Callable[..., Any]) -> None:
        """
        Combine the arrays of all ranks.

        :param array: at most ``CAPACITY`` bytes, of the same shape and type on all ranks; overwritten
        :param combine: a ufunc of NumPy that takes two arrays and ``out``, applied in the order of the ranks
        """
        boxes = self._post(array, sends=True)
        self._wait()
        array[...] = boxes[0]
        for box in boxes[1:]:
            combine(array, box, out=array)

    def broadcast_(self, array: Array) -> None:
        """
        Give all ranks the array of rank 0.

        :param array: as for :meth:`reduce_`
        """
        boxes = self._post(array, sends=self.rank == 0)
        self._wait()
        array[...] = boxes[0]

    def _post(self, array: Array, sends: bool) -> list[Array]:
        """
        Put a message into this rank's mailbox.

        :param array: the message
        :param sends: False to say only that this rank is here
        :return: the mailboxes of all ranks, to be read after :meth:`_wait`
        """
        self.n_sent += 1
        boxes = self._arrays(array)
        if sends:
            boxes[self.rank][...] = array
        self.sent[self.rank] = self.n_sent  # seen by others after the message: x86-64 keeps the order of writes
        return boxes

    def _wait(self) -> None:
        """Wait until all ranks have sent as many messages as this one."""
        start = watched = time.monotonic()
        while np.minimum.reduce(self.sent) < self.n_sent:
            now = time.monotonic()
            if now - start < AWAKE:
                let_others_go_first()
                continue
            if now - watched > WATCH:
                self.watch(now - start)
                watched = now
            time.sleep(NAP)
