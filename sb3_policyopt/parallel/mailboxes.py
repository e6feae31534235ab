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
import tempfile
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
"""Seconds between two looks at whether the others still live."""

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
    :return: where it is, until its descriptor is closed and nobody has it open; None if it cannot be made
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
    Whether a process is no longer there.

    :param process: the operating system's number
    :return: True also if nobody has asked yet how it ended
    """
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


class Mailboxes:
    """
    Two mailboxes for each rank, used by turns: whoever sees that all have sent their k-th message knows that nobody reads
    the (k − 1)-th any more, and may write the (k + 1)-th in its place.

    :param place: from :func:`create`
    :param rank: of this process
    :param processes: the number that the operating system gave to each rank's
    :param watch: called now and then while this rank waits, with the seconds that it has waited; raises an error if the others
        will not come
    :raises OSError: if the memory, or another process, cannot be reached from here
    """

    def __init__(self, place: Place, rank: int, processes: list[int], watch: Callable[[float], None]) -> None:
        if place.host != host():
            raise OSError("another host")
        self.rank, self.processes, self.watch = rank, processes, watch
        descriptor = os.open(f"/proc/{place.process}/fd/{place.descriptor}", os.O_RDWR)
        memory = mmap.mmap(descriptor, 0)
        os.close(descriptor)
        counts = np.frombuffer(memory, np.int64, len(processes) * CACHE_LINE // 8)
        self.sent = counts.reshape(len(processes), -1)[:, 0]  # how many messages each rank has sent
        self.boxes = np.frombuffer(memory, np.uint8, offset=counts.nbytes).reshape(2, len(processes), CAPACITY)
        self.n_sent = 0
        self._views: dict[tuple[Any, ...], list[list[Array]]] = {}

    def reduce_(self, array: Array, combine: Callable[..., Any]) -> None:
        """
        Combine the arrays of all ranks.

        :param array: at most ``CAPACITY`` bytes, of the same shape and type on all ranks; overwritten
        :param combine: a ufunc of NumPy that takes two arrays and ``out``, applied in the order of the ranks
        """
        boxes = self._next_boxes(array)
        boxes[self.rank][...] = array
        self._send()
        array[...] = boxes[0]
        for box in boxes[1:]:
            combine(array, box, out=array)

    def broadcast_(self, array: Array) -> None:
        """
        Give all ranks the array of rank 0.

        :param array: at most ``CAPACITY`` bytes, of the same shape and type on all ranks; overwritten on the others
        """
        boxes = self._next_boxes(array)
        if self.rank == 0:
            boxes[0][...] = array
        self._send()
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
        self._send()
        if max(lengths) > contents.shape[1]:
            return None
        return [content[:length].tobytes() for content, length in zip(contents, lengths, strict=True)]

    def _next_boxes(self, like: Array) -> list[Array]:
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

    def _send(self) -> None:
        """Say that this rank's message is in its mailbox, and wait for those of all others."""
        self.n_sent += 1
        self.sent[self.rank] = self.n_sent  # seen by others after the message: x86-64 keeps the order of writes
        start = watched = time.monotonic()
        while np.minimum.reduce(self.sent) < self.n_sent:
            now = time.monotonic()
            if now - start < AWAKE:
                let_others_go_first()
                continue
            time.sleep(NAP)
            if now - watched > WATCH:
                watched = now
                ended = [rank for rank, process in enumerate(self.processes) if _has_ended(process)]
                if any(self.sent[rank] < self.n_sent for rank in ended):  # asked afterwards: a process may send, then end
                    raise RuntimeError("a process has ended")
                self.watch(now - start)
