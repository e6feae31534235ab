"""Memory that the trainer and its workers share: its layout, how other processes open it, and when it may be read."""

import mmap
import os
import platform
import sys
import tempfile
import threading
import uuid
from collections.abc import Sequence
from math import prod
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.parallel.mailboxes import CACHE_LINE

SPINS = platform.machine() in ("x86_64", "AMD64")
"""Whether the order in which one core writes is the one in which another sees it. Elsewhere all messages go through pipes."""

BUSY_WAIT = 1_000_000
"""Nanoseconds that a process busy-waits, yielding its core between two checks, before it sleeps."""

LARGE_DELAY = 100_000
"""Mean delay in nanoseconds above which other processes need the cores: a core that was yielded comes back too late."""

PAUSE = 100_000_000
"""Nanoseconds without busy-waiting, after that."""

INFO_BYTES = 2**16
"""Bytes for the infos of a worker, besides its last observations; longer ones are sent through its pipe."""

_lock = threading.Lock()


def fence() -> None:
    """Complete all earlier writes before any later read: taking a lock makes the processor wait for its writes."""
    with _lock:
        pass


def ordered(number: int, kind: int) -> int:
    """
    An order as one number, which is written and read at once: nobody sees the number of one order with the kind of another.

    :param number: of the order
    :param kind: ``Block.STEP`` or ``Block.MESSAGE``
    :return: higher than that of every order before
    """
    return 2 * number + kind


def number_and_kind(ordered: int) -> tuple[int, int]:
    """
    What :func:`ordered` was given.

    :param ordered: its result
    :return: number and kind
    """
    return divmod(ordered, 2)


class BusyWait:
    """
    Whether a process busy-waits for another one, decided by the delays that it has measured.

    It does as long as it notices soon that it can continue. On a busy machine it does not: a process that yields its core
    there is scheduled last, but one that has slept is scheduled first.
    """

    def __init__(self) -> None:
        self.delay = 0.0  # running mean
        self.sleeps_until = 0

    def until(self, start: int) -> int:
        """
        Until when to busy-wait.

        :param start: of the waiting; times are those of ``time.perf_counter_ns``, which all processes share
        :return: ``start`` to sleep at once
        """
        return start if start < self.sleeps_until else start + BUSY_WAIT

    def record(self, now: int, since: int) -> None:
        """
        Record the delay of a busy-wait that has ended.

        :param now: when the process noticed that it can continue
        :param since: when that became so
        """
        self.delay += (now - since - self.delay) / 8
        if self.delay > LARGE_DELAY:
            self.delay, self.sleeps_until = 0.0, now + PAUSE


class Plan(NamedTuple):
    """
    What the memory holds.

    :param bounds: of each process that steps, its first environment and the one after its last
    :param observations: name, shape and type of each array of an observation; the name is None if there is only one
    :param action_bytes: of one environment
    :param spins: see ``SPINS``
    """

    bounds: list[tuple[int, int]]
    observations: Sequence[tuple[str | None, tuple[int, ...], np.dtype[np.generic]]]
    action_bytes: int
    spins: bool

    def info_bytes(self, number: int) -> int:
        """
        Bytes for infos.

        :param number: of a process that steps
        :return: enough for all its environments to end an episode at once, with infos of the usual size
        """
        first, stop = self.bounds[number]
        return INFO_BYTES + (stop - first) * sum(dtype.itemsize * prod(shape) for _, shape, dtype in self.observations)


class Block:
    """
    The shared memory as arrays.

    :param plan: what it holds
    :param memory: of :func:`size` bytes; None to find out how many these are
    """

    # A worker's numbers are two cache lines. The trainer writes the first: the last order, see `ordered`, its time, and
    # whether the trainer sleeps until it is done. The worker writes the second: number and time of the last order done,
    # whether the worker sleeps, and the bytes of its infos.
    ORDERED, ORDER_TIME, TRAINER_SLEEPS = 0, 1, 2
    DONE, DONE_TIME, WORKER_SLEEPS, INFO_LENGTH = 8, 9, 10, 11
    NUMBERS = 2 * CACHE_LINE // 8

    STEP, MESSAGE = 0, 1
    """Kinds of orders: to step with the actions in the memory, and to read the pipe."""

    BY_PIPE = -1
    """In place of the infos' length: they are sent through the pipe."""

    def __init__(self, plan: Plan, memory: mmap.mmap | None) -> None:
        self.memory, self.size = memory, 0
        n_processes, n_envs = len(plan.bounds), plan.bounds[-1][1]
        # A memoryview gives a number in a third of the time that NumPy needs.
        self.numbers = self._reserve((n_processes * self.NUMBERS,), np.int64).data
        self.rewards = self._reserve((n_envs,), np.float32)
        self.dones = self._reserve((n_envs,), np.bool_)
        self.actions = self._reserve((n_envs * plan.action_bytes,), np.uint8)
        self.observations = {name: self._reserve((n_envs, *shape), dtype) for name, shape, dtype in plan.observations}
        self.infos = [self._reserve((plan.info_bytes(number),), np.uint8).data for number in range(n_processes)]

    def _reserve(self, shape: tuple[int, ...], dtype: DTypeLike) -> NumpyArray:
        """
        Reserve the next part of the memory, from the beginning of a cache line.

        :param shape: of an array
        :param dtype: of NumPy
        :return: the array; an empty one without memory
        """
        offset = self.size
        self.size += -(-np.dtype(dtype).itemsize * prod(shape) // CACHE_LINE) * CACHE_LINE
        return np.empty(0, dtype) if self.memory is None else np.ndarray(shape, dtype, self.memory, offset)

    def numbers_of(self, number: int) -> "memoryview[int]":
        """
        The numbers by which the trainer and a worker meet.

        :param number: of the worker
        :return: its two cache lines
        """
        return self.numbers[number * self.NUMBERS : (number + 1) * self.NUMBERS]

    def actions_as(self, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> NumpyArray:
        """
        The memory of the actions.

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
    Memory for several processes. On POSIX systems it has no name, so nothing is left in the file system if one is killed.

    :param size: in bytes
    :raises OSError: if there is not enough
    """

    def __init__(self, size: int) -> None:
        if sys.platform == "win32":
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
        Let another process open it.

        :param connection: to the other process
        :param process: number of that process
        """
        if sys.platform == "win32":
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
        if sys.platform == "win32":
            return _tagged(size, connection.recv_bytes().decode())
        handle = reduction.recv_handle(connection)
        try:
            return mmap.mmap(handle, size)
        finally:
            os.close(handle)

    def close_file(self) -> None:
        """Close the file; processes that have mapped the memory keep it."""
        if sys.platform != "win32":
            self.file.close()


if sys.platform == "win32":

    def _tagged(size: int, tag: str) -> mmap.mmap:
        """Windows' memory of that name."""
        return mmap.mmap(-1, size, tagname=tag)
