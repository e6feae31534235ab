"""
The process group: how the ranks connect, how long the connection lasts, and what an error on one of them means for the others.

Tensors on the CPU are sent by gloo, tensors on a GPU by nccl; small ones on the CPU are exchanged in shared memory if all
ranks are on one host (:mod:`sb3_policyopt.parallel.mailboxes`). The operations themselves are in
:mod:`sb3_policyopt.parallel.collectives`. Without a launcher, or with one process, there is no group, and nothing of
``torch.distributed`` is initialised.
"""

import atexit
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch as th
import torch.distributed as dist

from sb3_policyopt.errors import RankLostError
from sb3_policyopt.parallel import launcher, mailboxes
from sb3_policyopt.parallel.saves import Saves

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

P = ParamSpec("P")
T = TypeVar("T")

CONNECTION_ATTEMPTS = 10
"""Connection attempts, each to all other ranks, after which a rank that accepts them counts as alive."""


class Group:
    """
    The connection to the other ranks.

    Every rank has a listening socket. The operating system accepts connections to it as long as the process exists, however
    busy it is. This distinguishes a rank that has exited from one that is slow.

    :raises RankLostError: if one of the ranks does not connect in time
    :raises ValueError: if the script has made a process group itself
    """

    def __init__(self) -> None:
        if dist.is_initialized():
            raise ValueError(
                "torch.distributed has a process group already, but the ranks make their own when they first train: leave out "
                "init_process_group, or call torch.distributed.destroy_process_group() before learn()"
            )
        self.rank, self.size = launcher.rank(), launcher.world_size()
        self.timeout = launcher.timeout()
        self.store = _connect_to_store(self.rank, self.timeout)
        self.saves = Saves(self.store, self.rank, self.timeout)
        self.listener = _listen()
        host, port = self.listener.getsockname()[:2]
        self.store.set(f"listener/{self.rank}", f"{host} {port} {os.getpid()}")
        self._wait_for_all()
        backend = "cpu:gloo,cuda:nccl" if launcher.has_gpu_for_each_rank() else "gloo"
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.size, timeout=self.timeout)
        _schedule_gloo_as_batch()
        self.mailboxes: mailboxes.Mailboxes | None = None
        atexit.register(self.leave)

    def _wait_for_all(self) -> None:
        """Wait until every rank listens; the first rank to time out publishes the reason for all."""
        until = time.monotonic() + self.timeout.total_seconds()
        absent = list(range(self.size))
        try:
            while absent := [other for other in absent if not self.store.check([f"listener/{other}"])]:
                timed_out = time.monotonic() > until
                if timed_out or self.store.check(["cause"]):
                    seconds = f"{self.timeout.total_seconds():g} s ({launcher.TIMEOUT})"
                    cause = self.publish(f"{_names(absent)} did not start training within {seconds} at {_master()}")
                    self._let_others_read()
                    raise RankLostError(cause)
                time.sleep(0.1)
        except dist.DistError as error:
            raise RankLostError(
                f"rank 0, which serves the key-value store at {_master()}, cannot be reached: {error}"
            ) from error

    def _let_others_read(self) -> None:
        """Wait a moment if the store, where the others read the cause, ends with this process."""
        if self.rank == 0 and not launcher.torchrun_keeps_store():
            time.sleep(1)

    def leave(self, failed: bool = False) -> None:
        """
        Close the connections, so that an exchange of the others that needs this rank fails.

        :param failed: whether an operation may be under way, which nccl would wait for
        """
        atexit.unregister(self.leave)
        self.saves.end()
        if failed:
            self._let_others_read()
        self.listener.close()
        if dist.is_initialized() and not (failed and dist.get_backend() != "gloo"):
            dist.destroy_process_group()

    # ------------------------------------------------------------------ exchanges

    def exchange(self, collective: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """
        Take part in a collective operation.

        :param collective: the operation, of ``torch.distributed`` or of the mailboxes
        :param arguments: for it
        :param options: for it
        :return: what it returns
        :raises RankLostError: if it fails
        """
        try:
            return collective(*arguments, **options)
        except RuntimeError as error:
            raise RankLostError(f"training ended on rank {self.rank} because {self.diagnose(error)}") from error

    def gather_by_network(self, thing: T) -> list[T]:
        """
        What each rank has, through ``torch.distributed``.

        :param thing: can be pickled
        :return: one entry per rank, in their order
        """
        things = [thing] * self.size
        dist.all_gather_object(things, thing)
        return things

    def share_memory(self) -> None:
        """Open the mailboxes in shared memory, if all ranks can map the same memory."""
        mine = mailboxes.create(self.size) if self.rank == 0 else None
        everyone = self.exchange(self.gather_by_network, (os.getpid(), mine))
        place, processes = everyone[0][1], [process for process, _ in everyone]
        boxes = None
        if place is not None:
            with suppress(OSError):
                boxes = mailboxes.Mailboxes(place, self.rank, processes, self.check_others)
        if all(self.exchange(self.gather_by_network, boxes is not None)):
            self.mailboxes = boxes
        if mine is not None:
            os.close(mine.descriptor)

    def mailboxes_for(self, tensor: th.Tensor) -> mailboxes.Mailboxes | None:
        """
        The mailboxes in shared memory, if they serve a tensor.

        :param tensor: to be reduced or broadcast
        :return: None if ``torch.distributed`` has to send it: from a GPU, between hosts, or because it is large
        """
        return self.mailboxes if tensor.device.type == "cpu" and tensor.nbytes <= mailboxes.CAPACITY else None

    def check_others(self, seconds: float) -> None:
        """
        Check for a failure while this rank waits for the others in shared memory.

        :param seconds: how long it has waited
        :raises RuntimeError: if the time is over, or a rank has published a failure; :meth:`diagnose` says which
        """
        if seconds > self.timeout.total_seconds():
            raise RuntimeError(f"a rank did not come within {self.timeout.total_seconds():g} s")
        if self.store.check(["cause"]):
            raise RuntimeError("a rank has failed")

    # ------------------------------------------------------------------ failures

    def publish(self, cause: str) -> str:
        """
        Publish why training ends, unless another rank has done so before: all ranks then report the same cause.

        :param cause: what this rank knows
        :return: the cause that was published first
        """
        try:
            published: bytes = self.store.compare_set("cause", "", cause)
            return published.decode()
        except RuntimeError:
            return f"{cause} (rank 0, which serves the key-value store, cannot be reached)"

    def diagnose(self, error: BaseException) -> str:
        """
        Find out which rank is missing.

        :param error: of the exchange that failed
        :return: a sentence that names the rank
        """
        try:
            if self.store.check(["cause"]):
                return self.publish("")
            addresses = {
                other: self.store.get(f"listener/{other}").decode() for other in range(self.size) if other != self.rank
            }
        except RuntimeError:
            return f"rank 0 (process at {_master()}) exited without an error report: it was killed, or its host is down"
        for _ in range(CONNECTION_ATTEMPTS):
            gone = [other for other, address in addresses.items() if not _accepts_connections(address)]
            if gone:
                hosts = ", ".join(f"process {addresses[other].split()[2]} on {addresses[other].split()[0]}" for other in gone)
                return self.publish(f"{_names(gone)} exited without an error report: {hosts} was killed, or its host is down")
            time.sleep(0.1)
        return self._find_ranks_elsewhere(error)

    def _find_ranks_elsewhere(self, error: BaseException) -> str:
        """
        Name the ranks that are alive but do not take part in the exchange.

        :param error: of the exchange that failed
        :return: a sentence that names them
        """
        self.store.set(f"waiting/{self.rank}", "")
        missing = list(range(self.size))
        for _ in range(5 * CONNECTION_ATTEMPTS):
            missing = [other for other in missing if not self.store.check([f"waiting/{other}"])]
            if not missing:
                return self.publish(f"the connection between the ranks failed: {error}")
            time.sleep(0.1)
        return self.publish(
            f"{_names(missing)} is alive but did not come to the exchange within {self.timeout.total_seconds():g} s; if an "
            f"environment or a callback there is slow and not stuck, raise {launcher.TIMEOUT}"
        )


def _connect_to_store(rank: int, timeout: timedelta) -> "Store":
    """
    The key-value store through which the ranks find each other: served by torchrun if there is one, otherwise by rank 0.

    :param rank: of this process
    :param timeout: how long to wait for it
    :return: the store
    :raises RankLostError: if it cannot be reached
    """
    # A build of torch may lack them; torch exports TCPStore without declaring it.
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    host, port = launcher.master()
    serves = rank == 0 and not launcher.torchrun_keeps_store()
    try:
        store = TCPStore(host, port, is_master=serves, timeout=timeout, wait_for_workers=False)
    except RuntimeError as error:
        raise RankLostError(
            f"no answer from {_master()}: has rank 0 started, and can this host reach it? ({error})"
        ) from error
    # A restart uses other keys, so that no rank reads what was written before it.
    return PrefixStore(f"sb3_policyopt/{launcher.restarts()}", store)


def _listen() -> socket.socket:
    """
    A socket on the address by which this host reaches the others.

    :return: listening
    """
    host, port = launcher.master()
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        own = probe.getsockname()[0]
    return socket.create_server((own, 0), family=family, backlog=128)


def _accepts_connections(address: str) -> bool:
    """
    Whether a rank's process exists.

    :param address: host, port and process
    :return: False if the connection is refused or times out
    """
    host, port, _ = address.split()
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def _schedule_gloo_as_batch() -> None:
    """
    Keep gloo's receiving thread from interrupting the thread that sends.

    Where a rank has one core, a message that arrives while another is sent wakes the receiving thread in the middle. It finds
    the connection locked by the sender and retries without a pause until Linux preempts it: one to four milliseconds, ten
    times the exchange itself. A thread of the policy SCHED_BATCH waits until the core is free.
    """
    for thread in Path("/proc/self/task").glob("*"):  # empty except on Linux
        with suppress(OSError):  # it has ended, or a container forbids it
            if (thread / "comm").read_text().startswith("gloo"):
                os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))


def _names(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _master() -> str:
    host, port = launcher.master()
    return f"{host}:{port}"


_group: Group | None = None


def connected() -> Group:
    """
    The group, which is made at the first call.

    :return: the group of this process, which has several ranks
    :raises RankLostError: if one of them does not connect in time
    """
    global _group
    if _group is None:
        _group = Group()
        _group.share_memory()
    return _group


def saving() -> AbstractContextManager[None]:
    """
    Around the saving of a model, which rank 0 does: outside of trainings the others wait until it has.

    :return: a context; before the first training, where the ranks do not know each other, nobody waits
    """
    return nullcontext() if _group is None else _group.saves.saving()


@contextmanager
def together() -> Iterator[None]:
    """
    Within this context an error on one rank is an error on all of them.

    :raises RankLostError: if another rank has failed or exited; it names that rank and says why
    """
    if _group is None and launcher.world_size() == 1:
        yield
        return
    group = connected()
    try:
        yield
    except RankLostError:
        group.leave(failed=True)
        raise
    except BaseException as error:
        group.publish(f"rank {group.rank} failed with {type(error).__name__}: {error}")
        group.leave(failed=True)
        raise
