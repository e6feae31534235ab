"""
Sums over the processes of one host, in memory that they share.

``torch.distributed`` sends tensors on the CPU through the network, also between processes of one host: each message wakes a
sleeping thread on another core, twice per exchange, which takes ten times as long as adding the numbers. Here each process
writes its numbers into a mailbox that all can read, busy-waits until the others have done so, and adds them all, in the order
of the ranks: the same bits everywhere.

The memory has no name in the file system, so nothing is left in it if a process is killed.
"""

import mmap
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sb3_policyopt.maths.arrays import NumpyArray

CAPACITY = 2**20
"""Bytes of a mailbox. The time of a larger message is that of its bytes; waking a thread adds little to it."""

BUSY_WAIT = 0.02
"""Seconds that a process busy-waits for the others before it sleeps between two checks."""

SLEEP = 0.001
"""Seconds between two checks after that."""

CHECK_INTERVAL = 0.2
"""Seconds between two checks of whether the other processes exist."""

CACHE_LINE = 64
"""Bytes that two cores cannot write at the same time."""

GATHER, BROADCAST, REDUCE = range(3)
"""What a message is for."""

yield_core: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))
"""Let other processes that are ready use this core."""


class Place(NamedTuple):
    """
    Where other processes open the memory.

    :param host: from :func:`host`
    :param process: that has made it
    :param descriptor: of the file in that process
    """

    host: str
    process: int
    descriptor: int


def host() -> str | None:
    """
    Identifies the processes that can share memory with this one.

    :return: the running system and its numbering of processes (a container may have its own); None where one process cannot
        open what another has open (not Linux), or where the order in which one core writes is not the one in which another
        sees it (not x86-64)
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return None
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")


def create(size: int) -> Place | None:
    """
    Make memory for a number of processes.

    :param size: how many
    :return: where it is, until its descriptor is closed and no process has it open; None if it cannot be made
    """
    try:
        name = host()
        if name is None:
            return None
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            os.posix_fallocate(file.fileno(), 0, size * (CACHE_LINE + 2 * CAPACITY))
            return Place(name, os.getpid(), os.dup(file.fileno()))
    except OSError:  # a container forbids it, or has too little
        return None


def _has_ended(process: int) -> bool:
    """
    Whether a process has ended.

    :param process: the operating system's number
    :return: True also if its parent has not read its exit status yet
    """
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


class Mailboxes:
    """
    Two mailboxes for each rank, used in turn: once all have sent their k-th message, none reads the (k − 1)-th any more, and
    the (k + 1)-th may be written in its place. With each message a rank says what it is. If they do not all say
    the same, each raises an error, and none takes a number from another's message.

    :param place: from :func:`create`
    :param rank: of this process
    :param processes: the number that the operating system gave to each rank's
    :param check: called from time to time while this rank waits, with the seconds that it has waited; raises an error if the
        others will not come
    :raises OSError: if the memory, or another process, cannot be reached from here
    """

    def __init__(self, place: Place, rank: int, processes: list[int], check: Callable[[float], None]) -> None:
        if place.host != host():
            raise OSError("another host")
        self.rank, self.processes, self.check = rank, processes, check
        descriptor = os.open(f"/proc/{place.process}/fd/{place.descriptor}", os.O_RDWR)
        memory = mmap.mmap(descriptor, 0)
        os.close(descriptor)
        counts = np.frombuffer(memory, np.int64, len(processes) * CACHE_LINE // 8)
        self.sent = counts.reshape(len(processes), -1)[:, 0]  # how many messages each rank has sent
        self.kinds = counts.reshape(len(processes), -1)[:, 1:3].T  # what is in each rank's two mailboxes
        self.boxes = np.frombuffer(memory, np.uint8, offset=counts.nbytes).reshape(2, len(processes), CAPACITY)
        self.n_sent = 0
        self._views: dict[tuple[np.dtype[np.generic], tuple[int, ...]], list[list[NumpyArray]]] = {}

    def reduce_(self, array: NumpyArray, combine: np.ufunc) -> None:
        """
        Combine the arrays of all ranks.

        :param array: at most ``CAPACITY`` bytes, of the same shape and type on all ranks; overwritten
        :param combine: takes two arrays and ``out``; applied in the order of the ranks
        :raises ValueError: if the ranks have arrays of different length or type, or are at different operations
        """
        boxes = self._next_boxes(array)
        boxes[self.rank][...] = array
        self._send(_kind(REDUCE, array))
        array[...] = boxes[0]
        for box in boxes[1:]:
            combine(array, box, out=array)

    def broadcast_(self, array: NumpyArray) -> None:
        """
        Give all ranks the array of rank 0.

        :param array: at most ``CAPACITY`` bytes, of the same shape and type on all ranks; overwritten on the others
        """
        boxes = self._next_boxes(array)
        if self.rank == 0:
            boxes[0][...] = array
        self._send(_kind(BROADCAST, array))
        array[...] = boxes[0]

    def gather(self, message: bytes) -> list[bytes] | None:
        """
        Give all ranks the messages of all.

        :param message: this rank's, of any length
        :return: every rank's; None, on all ranks, if one is too long for a mailbox
        """
        boxes = self.boxes[(self.n_sent + 1) % 2]
        lengths, contents = boxes[:, :8].view(np.int64)[:, 0], boxes[:, 8:]
        lengths[self.rank] = len(message)
        if len(message) <= contents.shape[1]:
            contents[self.rank, : len(message)] = np.frombuffer(message, np.uint8)
        self._send(GATHER)
        if max(lengths) > contents.shape[1]:
            return None
        return [content[:length].tobytes() for content, length in zip(contents, lengths, strict=True)]

    def _next_boxes(self, like: NumpyArray) -> list[NumpyArray]:
        """
        The mailboxes for the next message.

        :param like: the message
        :return: each rank's, of the message's shape and type
        """
        key = (like.dtype, like.shape)
        if key not in self._views:
            self._views[key] = [
                [box[: like.nbytes].view(like.dtype).reshape(like.shape) for box in boxes] for boxes in self.boxes
            ]
        return self._views[key][(self.n_sent + 1) % 2]

    def _send(self, kind: int) -> None:
        """
        Publish that this rank's message is in its mailbox, and wait for those of all others.

        :param kind: of the message, see :func:`_kind`
        :raises ValueError: if another rank has sent a message of another kind
        """
        self.n_sent += 1
        kinds = self.kinds[self.n_sent % 2]
        kinds[self.rank] = kind
        self.sent[self.rank] = self.n_sent  # seen by others after the message: x86-64 keeps the order of writes
        start = checked = time.monotonic()
        while np.minimum.reduce(self.sent) < self.n_sent:
            now = time.monotonic()
            if now - start < BUSY_WAIT:
                yield_core()
                continue
            time.sleep(SLEEP)
            if now - checked > CHECK_INTERVAL:
                checked = now
                ended = [rank for rank, process in enumerate(self.processes) if _has_ended(process)]
                if any(self.sent[rank] < self.n_sent for rank in ended):  # read after the states: a process may send, then end
                    raise RuntimeError("a process has ended")
                self.check(now - start)
        if (kinds != kind).any():
            raise ValueError(
                "the ranks exchange different things: "
                + ", ".join(f"rank {rank} {_described(kind)}" for rank, kind in enumerate(kinds.tolist()))
                + ". They must run the same training: what decides about an update, such as an overridden method, must decide "
                "alike on all of them"
            )


def _kind(operation: int, array: NumpyArray) -> int:
    """
    What a message is, as one number.

    :param operation: what it is for
    :param array: the message
    :return: another number for another operation, type or length
    """
    return operation + 4 * (ord(array.dtype.char) + 128 * array.nbytes)


def _described(kind: int) -> str:
    """
    What a message is, in words.

    :param kind: of :func:`_kind`
    :return: for an error message
    """
    operation, rest = kind % 4, kind // 4
    what = ("gathers", "receives or broadcasts", "reduces")[operation]
    return what if operation == GATHER else f"{what} {rest // 128} bytes of {np.dtype(chr(rest % 128))}"
