"""
Several processes as one: the only place that talks to ``torch.distributed``.

A launcher (``torchrun``, Slurm, Kubernetes) starts the same script several times and tells each process its rank in the
environment variables ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``. Without them, or with one process,
every function here is the identity and nothing of ``torch.distributed`` is initialised.

Tensors on the CPU travel by gloo, tensors on a GPU by nccl; small ones on the CPU do not travel at all if all ranks are on one
host (:mod:`sb3_policyopt.parallel.mailboxes`). What the ranks say to each other, and when, is the business of
:mod:`sb3_policyopt.parallel`.
"""

import atexit
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
import torch.distributed as dist

from sb3_policyopt.errors import RankLostError
from sb3_policyopt.parallel import mailboxes as shared_memory

T = TypeVar("T")

LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables by which a launcher says that there are several processes."""

TIMEOUT = "SB3_POLICYOPT_TIMEOUT"
"""Environment variable: seconds that a rank waits for the others (for a rollout, an evaluation on rank 0), 1800 if unset."""

KEPT_BY_TORCHRUN = "TORCHELASTIC_USE_AGENT_STORE"
"""Environment variable by which torchrun says that it keeps the meeting point, which then outlives rank 0."""

KNOCKS = 10
"""How often a survivor tries the doors of the others before it concludes that all are alive."""


def world_size() -> int:
    """
    Number of processes that train together.

    :return: 1 without a launcher
    """
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in LAUNCHER) else 1


def rank() -> int:
    """
    The number of this process.

    :return: 0 … world_size − 1; 0 without a launcher
    """
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def timeout() -> timedelta:
    """
    How long a rank waits for the others.

    :return: from the environment variable ``SB3_POLICYOPT_TIMEOUT``, in seconds
    :raises ValueError: if that is not a positive number
    """
    text = os.environ.get(TIMEOUT, "1800")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{TIMEOUT} must be a positive number of seconds, got {text!r}")
    return timedelta(seconds=seconds)


def choose_device(device: th.device) -> None:
    """
    Make "cuda" mean this rank's own GPU of its host; nothing to do without a launcher, and for a model on the CPU, so that
    a rank which needs no GPU takes no memory there.

    :param device: of a model
    """
    if world_size() > 1 and device.type == "cuda" and device.index is None:
        th.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank())) % th.cuda.device_count())


class _Group:
    """
    The connection to the other ranks.

    Every rank opens a door: a listening socket whose connections the operating system accepts as long as the process lives,
    however busy it is. So a survivor can tell a rank that is gone from one that is slow.
    """

    def __init__(self) -> None:
        self.rank, self.size = rank(), world_size()
        self.timeout = timeout()
        self.store = _meeting_point(self.rank, self.timeout)
        self.door = _open_door()
        self.store.set(f"door/{self.rank}", f"{self.door.getsockname()[0]} {self.door.getsockname()[1]} {os.getpid()}")
        self._wait_for_all()
        gpu_for_each = th.cuda.is_available() and th.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        backend = "cpu:gloo,cuda:nccl" if gpu_for_each else "gloo"
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.size, timeout=self.timeout)
        _let_senders_finish()
        self.mailboxes: shared_memory.Mailboxes | None = None
        atexit.register(self.leave)

    def _wait_for_all(self) -> None:
        """Wait until every rank has opened its door; the first to lose patience says so for all who wait."""
        until = time.monotonic() + self.timeout.total_seconds()
        absent = list(range(self.size))
        try:
            while absent := [other for other in absent if not self.store.check([f"door/{other}"])]:
                waited_enough = time.monotonic() > until
                if waited_enough or self.store.check(["cause"]):
                    seconds = f"{self.timeout.total_seconds():g} s ({TIMEOUT})"
                    cause = self.settle(f"{_names(absent)} did not start training within {seconds} at {_master()}")
                    self._let_others_read()
                    raise RankLostError(cause)
                time.sleep(0.1)
        except dist.DistError as error:
            raise RankLostError(f"rank 0, which kept the meeting point at {_master()}, is gone: {error}") from error

    def _let_others_read(self) -> None:
        """Stay a moment if the meeting point, where the others read why training ends, ends with this process."""
        if self.rank == 0 and os.environ.get(KEPT_BY_TORCHRUN) != "True":
            time.sleep(1)

    def leave(self, failed: bool = False) -> None:
        """
        Close the connections, so that those who still wait for this rank learn it.

        :param failed: whether something may be under way, which nccl would wait for
        """
        atexit.unregister(self.leave)
        if failed:
            self._let_others_read()
        self.door.close()
        if dist.is_initialized() and not (failed and dist.get_backend() != "gloo"):
            dist.destroy_process_group()

    def share_memory(self) -> None:
        """Meet in memory, if all ranks can reach the same."""
        mine = shared_memory.create(self.size) if self.rank == 0 else None
        place, processes = from_rank_0(mine), gather(os.getpid())
        boxes = None
        if place is not None:
            with suppress(OSError):
                boxes = shared_memory.Mailboxes(place, self.rank, processes, self.watch)
        if all(gather(boxes is not None)):
            self.mailboxes = boxes
        if mine is not None:
            os.close(mine.descriptor)

    def watch(self, seconds: float) -> None:
        """
        Ask for news while this rank waits for the others in shared memory.

        :param seconds: for which it has waited
        :raises RuntimeError: if one of them will not come; :meth:`diagnose` says which
        """
        if seconds > self.timeout.total_seconds():
            raise RuntimeError(f"a rank did not come within {self.timeout.total_seconds():g} s")
        if self.store.check(["cause"]):
            raise RuntimeError("a rank has failed")

    # ------------------------------------------------------------------ faults

    def settle(self, cause: str) -> str:
        """
        Agree on why training ends: whoever says it first is believed by all.

        :param cause: what this rank knows
        :return: what all say
        """
        try:
            settled: bytes = self.store.compare_set("cause", "", cause)
            return settled.decode()
        except RuntimeError:
            return f"{cause} (rank 0, which kept the meeting point, cannot be reached)"

    def diagnose(self, error: BaseException) -> str:
        """
        Find out who is missing.

        :param error: what the exchange with the others ended in
        :return: a sentence that names the rank
        """
        try:
            if self.store.check(["cause"]):
                return self.settle("")
            addresses = {other: self.store.get(f"door/{other}").decode() for other in range(self.size) if other != self.rank}
        except RuntimeError:
            return f"rank 0 (process at {_master()}) is gone without a word: it was killed, or its host is down"
        for _ in range(KNOCKS):
            gone = [other for other, address in addresses.items() if not _opens(address)]
            if gone:
                hosts = ", ".join(f"process {addresses[other].split()[2]} on {addresses[other].split()[0]}" for other in gone)
                return self.settle(f"{_names(gone)} is gone without a word: {hosts} was killed, or its host is down")
            time.sleep(0.1)
        return self._call_roll(error)

    def _call_roll(self, error: BaseException) -> str:
        """
        Name the ranks that are alive but elsewhere.

        :param error: what the exchange with the others ended in
        :return: a sentence that names them
        """
        self.store.set(f"waiting/{self.rank}", "")
        missing = list(range(self.size))
        for _ in range(5 * KNOCKS):
            missing = [other for other in missing if not self.store.check([f"waiting/{other}"])]
            if not missing:
                return self.settle(f"the connection between the ranks failed: {error}")
            time.sleep(0.1)
        return self.settle(
            f"{_names(missing)} is alive but did not come to the exchange within {self.timeout.total_seconds():g} s; if an "
            f"environment or a callback there is slow and not stuck, raise {TIMEOUT}"
        )


def _meeting_point(rank: int, timeout: timedelta) -> Any:
    """
    Where the ranks find each other: kept by torchrun if there is one, otherwise by rank 0.

    :param rank: of this process
    :param timeout: how long to wait for it
    :return: a store of keys and values
    :raises RankLostError: if it cannot be reached
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    kept_by_torchrun = os.environ.get(KEPT_BY_TORCHRUN) == "True"
    try:
        is_keeper = rank == 0 and not kept_by_torchrun
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=is_keeper, timeout=timeout, wait_for_workers=False
        )
    except RuntimeError as error:
        raise RankLostError(f"nobody at {_master()}: has rank 0 started, and can this host reach it? ({error})") from error
    # After a restart nobody must read what the ranks of before have written.
    generation = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    return dist.PrefixStore(f"sb3_policyopt/{generation}", store)  # type: ignore[attr-defined]


def _open_door() -> socket.socket:
    """
    A socket on the address by which this host reaches the others.

    :return: listening
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        own = probe.getsockname()[0]
    return socket.create_server((own, 0), family=family, backlog=128)


def _opens(address: str) -> bool:
    """
    Whether a rank's process is alive.

    :param address: host, port and process
    :return: False if nobody answers
    """
    host, port, _ = address.split()
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def _let_senders_finish() -> None:
    """
    Keep gloo's thread that listens from interrupting the one that sends.

    Where a rank has one core, a message that comes in while another is sent wakes the listener in the middle. It finds the
    connection locked by the sender, and asks again without a pause for as long as Linux lets it: one to four milliseconds,
    ten times the exchange itself. A thread of the policy SCHED_BATCH waits until the core is free.
    """
    for thread in Path("/proc/self/task").glob("*"):  # nothing there but on Linux
        with suppress(OSError):  # it has ended, or a container forbids it
            if (thread / "comm").read_text().startswith("gloo"):
                os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))


def _names(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _master() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


_group: _Group | None = None


def connect() -> None:
    """
    Meet the other ranks, unless that was done before.

    :raises RankLostError: if one of them does not come in time
    """
    global _group
    if _group is None and world_size() > 1:
        _group = _Group()
        _group.share_memory()


@contextmanager
def together() -> Iterator[None]:
    """
    Within this context an error on one rank is an error on all of them.

    :raises RankLostError: if another rank failed or is gone; it names that rank and says why
    """
    connect()
    if _group is None:
        yield
        return
    try:
        yield
    except RankLostError:
        _group.leave(failed=True)
        raise
    except BaseException as error:
        _group.settle(f"rank {_group.rank} failed with {type(error).__name__}: {error}")
        _group.leave(failed=True)
        raise


def _exchange(collective: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """
    Take part in a collective operation.

    :param collective: of ``torch.distributed``
    :param arguments: for it
    :param options: for it
    :return: what it returns
    :raises RankLostError: if it fails
    """
    connect()
    assert _group is not None
    try:
        return collective(*arguments, **options)
    except RuntimeError as error:
        raise RankLostError(f"training ended on rank {_group.rank} because {_group.diagnose(error)}") from error


def _boxes_for(tensor: th.Tensor) -> shared_memory.Mailboxes | None:
    """
    The mailboxes in shared memory, if they serve a tensor.

    :param tensor: to be reduced or broadcast
    :return: None if it has to travel: from a GPU, between hosts, or because it is large
    """
    boxes = None if _group is None else _group.mailboxes
    return boxes if tensor.device.type == "cpu" and tensor.nbytes <= shared_memory.CAPACITY else None


def _all_reduce(tensor: th.Tensor, op: Any, combine: Any) -> None:
    """
    Combine the tensors of all ranks.

    :param tensor: overwritten
    :param op: how, for ``torch.distributed``
    :param combine: the same, for NumPy
    """
    if boxes := _boxes_for(tensor):
        boxes.reduce_(tensor.detach().numpy(), combine)
    else:
        _wait_awake(dist.all_reduce(tensor, op=op, async_op=True), tensor.device)


def _broadcast(tensor: th.Tensor) -> None:
    """
    Give all ranks the tensor of rank 0.

    :param tensor: overwritten on the other ranks
    """
    if boxes := _boxes_for(tensor):
        boxes.broadcast_(tensor.detach().numpy())
    else:
        _wait_awake(dist.broadcast(tensor, src=0, async_op=True), tensor.device)


def _gather(thing: T) -> list[T]:
    """
    What each rank has.

    :param thing: can be pickled
    :return: one entry a rank, in their order
    """
    if _group is not None and _group.mailboxes is not None:
        messages = _group.mailboxes.gather(pickle.dumps(thing))
        if messages is not None:
            return [pickle.loads(message) for message in messages]
    things = [thing] * world_size()
    dist.all_gather_object(things, thing)
    return things


def _wait_awake(work: Any, device: th.device) -> None:
    """
    Wait for a collective operation.

    A process that sleeps until the others are there gives its processor up, which then takes several times as long to wake
    as the exchange itself. So on the CPU this one only lets others go first, and sleeps if that takes long.

    :param work: under way
    :param device: of its tensor
    """
    if device.type == "cpu":
        until = time.monotonic() + shared_memory.AWAKE
        while not work.is_completed() and time.monotonic() < until:
            shared_memory.let_others_go_first()
    work.wait()


def sum_(tensor: th.Tensor) -> th.Tensor:
    """
    The sum over all ranks, the same bits on each.

    :param tensor: overwritten
    :return: the same tensor
    """
    if world_size() > 1:
        _exchange(_all_reduce, tensor, dist.ReduceOp.SUM, np.add)
    return tensor


def max_(tensor: th.Tensor) -> th.Tensor:
    """
    The largest over all ranks, entry by entry.

    :param tensor: overwritten
    :return: the same tensor
    """
    if world_size() > 1:
        _exchange(_all_reduce, tensor, dist.ReduceOp.MAX, np.maximum)
    return tensor


def broadcast_(tensor: th.Tensor) -> th.Tensor:
    """
    What rank 0 has.

    :param tensor: overwritten on the other ranks
    :return: the same tensor
    """
    if world_size() > 1:
        _exchange(_broadcast, tensor)
    return tensor


def gather(thing: T) -> list[T]:
    """
    What each rank has, on every rank.

    :param thing: can be pickled
    :return: one entry a rank, in their order
    """
    return _exchange(_gather, thing) if world_size() > 1 else [thing]


def from_rank_0(thing: T) -> T:
    """
    What rank 0 has, on every rank.

    :param thing: can be pickled; counts on rank 0 only
    :return: rank 0's
    """
    things = [thing]
    if world_size() > 1:
        _exchange(dist.broadcast_object_list, things, src=0)
    return things[0]


def barrier() -> None:
    """Wait until every rank is here."""
    gather(None)
