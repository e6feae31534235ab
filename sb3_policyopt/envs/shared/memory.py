"""Memory that the trainer and its workers share: what lies where, how it is handed over, and when it may be read."""

import mmap
import os
import platform
import tempfile
import threading
import uuid
from math import prod
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from sb3_policyopt.parallel.mailboxes import CACHE_LINE

Array = np.ndarray[Any, Any]

SPINS = platform.machine() in ("x86_64", "AMD64")
"""Whether the order in which one core writes is the one in which another sees it. Elsewhere all messages go through pipes."""

AWAKE = 1_000_000
"""Nanoseconds that a process looks whether it can go on, leaving the core to others in between, before it sleeps."""

LATE = 100_000
"""Mean delay in nanoseconds above which others need the cores: whoever leaves one gets it back long after it could go on."""

PAUSE = 100_000_000
"""Nanoseconds without staying awake, after that."""

LETTER = 2**16
"""Bytes for the infos of a worker, besides its last observations; longer ones go through its pipe."""

_lock = threading.Lock()


def fence() -> None:
    """Let no read that follows overtake a write that precedes: taking a lock makes the processor wait for its writes."""
    with _lock:
        pass


class Alertness:
    """
    Whether a process may stay awake until another one has done something.

    It may as long as it then notices soon. On a busy machine it does not: whoever leaves a core to others there gets it back
    last, but whoever has slept gets it first.
    """

    def __init__(self) -> None:
        self.delay = 0.0  # running mean
        self.sleeps_until = 0

    def until(self, start: int) -> int:
        """
        Until when to stay awake.

        :param start: of the waiting; times are those of ``time.perf_counter_ns``, which all processes share
        :return: ``start`` to sleep at once
        """
        return start if start < self.sleeps_until else start + AWAKE

    def note(self, now: int, since: int) -> None:
        """
        Learn from a time of staying awake.

        :param now: when the process noticed that it can go on
        :param since: when that became so
        """
        self.delay += (now - since - self.delay) / 8
        if self.delay > LATE:
            self.delay, self.sleeps_until = 0.0, now + PAUSE


class Plan(NamedTuple):
    """
    What the memory is for.

    :param bounds: of each worker, its first environment and the one after its last
    :param observations: name, shape and type of each array of an observation; the name is None if there is only one
    :param action_bytes: of one environment
    :param spins: see ``SPINS``
    """

    bounds: list[tuple[int, int]]
    observations: list[tuple[Any, tuple[int, ...], np.dtype[Any]]]
    action_bytes: int
    spins: bool

    def letter_bytes(self, worker: int) -> int:
        """
        Room for infos.

        :param worker: its number
        :return: enough for all its environments to end an episode at once, with infos of the usual size
        """
        first, stop = self.bounds[worker]
        return LETTER + (stop - first) * sum(dtype.itemsize * prod(shape) for _, shape, dtype in self.observations)


class Block:
    """
    The shared memory as arrays.

    :param plan: what it is for
    :param memory: of :func:`size` bytes; None to find out how many these are
    """

    # A worker's numbers are two cache lines. The first is the trainer's: number, kind and time of the last order, and whether
    # the trainer sleeps until it is done. The second is the worker's: number and time of the last order done, whether the
    # worker sleeps, and the bytes of its letter.
    ORDERED, KIND, ORDER_TIME, AWAITED = 0, 1, 2, 3
    DONE, DONE_TIME, ASLEEP, LETTER = 8, 9, 10, 11
    NUMBERS = 2 * CACHE_LINE // 8

    STEP, MESSAGE = 0, 1
    """Kinds of orders: to step with the actions in the memory, and to read the pipe."""

    BY_PIPE = -1
    """In place of a letter's length: it comes through the pipe."""

    def __init__(self, plan: Plan, memory: mmap.mmap | None) -> None:
        self.memory, self.size = memory, 0
        n_workers, n_envs = len(plan.bounds), plan.bounds[-1][1]
        # A memoryview gives a number in a third of the time that NumPy needs.
        self.numbers = self._carve((n_workers * self.NUMBERS,), np.int64).data
        self.rewards = self._carve((n_envs,), np.float32)
        self.dones = self._carve((n_envs,), np.bool_)
        self.actions = self._carve((n_envs * plan.action_bytes,), np.uint8)
        self.observations = {name: self._carve((n_envs, *shape), dtype) for name, shape, dtype in plan.observations}
        self.letters = [self._carve((plan.letter_bytes(worker),), np.uint8).data for worker in range(n_workers)]

    def _carve(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """
        Take the next part of the memory, from the beginning of a cache line.

        :param shape: of an array
        :param dtype: of NumPy
        :return: the array; an empty one without memory
        """
        offset = self.size
        self.size += -(-np.dtype(dtype).itemsize * prod(shape) // CACHE_LINE) * CACHE_LINE
        return np.empty(0, dtype) if self.memory is None else np.ndarray(shape, dtype, self.memory, offset)

    def actions_as(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """
        The place for actions.

        :param dtype: of the actions
        :param shape: of the actions of all environments; not more bytes than planned
        :return: of that type and shape
        """
        return self.actions[: dtype.itemsize * prod(shape)].view(dtype).reshape(shape)


def size(plan: Plan) -> int:
    """
    Bytes that are needed.

    :param plan: what for
    :return: at least a page
    """
    return max(Block(plan, None).size, mmap.PAGESIZE)


class Memory:
    """
    Memory for several processes. On POSIX systems it has no name, so nothing stays behind, whatever kills whom.

    :param size: in bytes
    :raises OSError: if there is not enough
    """

    def __init__(self, size: int) -> None:
        if os.name == "nt":
            self.tag = f"sb3-policyopt-{uuid.uuid4()}"
            self.map = _tagged(size, self.tag)
            return
        self.file = tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)  # noqa: SIM115
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.file.fileno(), 0, size)  # or a process would be killed when it writes
        else:
            self.file.truncate(size)
        self.map = mmap.mmap(self.file.fileno(), size)

    def send(self, connection: Connection, process: int) -> None:
        """
        Hand it over.

        :param connection: to the other process
        :param process: number of that process
        """
        if os.name == "nt":
            connection.send_bytes(self.tag.encode())
        else:
            reduction.send_handle(connection, self.file.fileno(), process)

    @staticmethod
    def receive(connection: Connection, size: int) -> mmap.mmap:
        """
        The other side of :meth:`send`.

        :param connection: to the process that has it
        :param size: in bytes
        :return: the same memory
        """
        if os.name == "nt":
            return _tagged(size, connection.recv_bytes().decode())
        handle = reduction.recv_handle(connection)
        try:
            return mmap.mmap(handle, size)
        finally:
            os.close(handle)

    def close_file(self) -> None:
        """Whoever has mapped the memory keeps it."""
        if os.name != "nt":
            self.file.close()


def _tagged(size: int, tag: str) -> mmap.mmap:
    """Windows' memory of that name."""
    return mmap.mmap(-1, size, tagname=tag)  # type: ignore[call-arg, unused-ignore]
