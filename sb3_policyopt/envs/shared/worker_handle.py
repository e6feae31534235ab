"""One worker process, as the trainer sees it: starting it, and the connection to it."""

import multiprocessing
import pickle
import select
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_policyopt.envs.shared import worker
from sb3_policyopt.saving.env_state import Env


class Context(Protocol):
    """A context of :mod:`multiprocessing`."""

    def Pipe(self) -> tuple[Connection, Connection]:
        """Two connected ends."""

    def Process(self, *, target: Callable[..., object], args: tuple[object, ...], daemon: bool) -> BaseProcess:
        """
        A process.

        :param target: what it runs
        :param args: for the function
        :param daemon: whether Python ends it with the script
        """


class WorkerHandle:
    """
    A worker process and the connection to it.

    :param number: of its share of the environments
    :param process: the process
    :param connection: to it
    :param first: its first environment
    :param stop: the one after its last
    """

    def __init__(self, number: int, process: BaseProcess, connection: Connection, first: int, stop: int) -> None:
        self.number, self.process, self.connection = number, process, connection
        self.first, self.stop = first, stop
        self.received: list[bytes] = []
        self.numbers: memoryview[int]
        self.infos: memoryview[int]
        # A tenth of the time that `wait` takes, which makes such an object at each call; Windows has none.
        self.poll = select.poll() if hasattr(select, "poll") else None
        if self.poll is not None:
            self.poll.register(connection.fileno(), select.POLLIN)
            self.poll.register(process.sentinel, select.POLLIN)

    def __str__(self) -> str:
        count = self.stop - self.first
        which = f"environment {self.first}" if count == 1 else f"environments {self.first} to {self.stop - 1}"
        return f"The worker process of {which}"

    def has_sent(self, timeout: float) -> bool:
        """
        Sleep until the worker has sent something or ended.

        :param timeout: seconds to wait at most
        :return: whether there is something to receive, which may be that it has closed the connection
        """
        if self.poll is None:
            return self.connection in wait([self.connection, self.process.sentinel], timeout)
        return self.connection.fileno() in dict(self.poll.poll(1000 * timeout))

    def how_it_ended(self) -> str:
        """How the process ended, as a sentence without its full stop."""
        self.process.join(1.0)
        code = self.process.exitcode
        if code is None:
            return f"{self} has closed its connection"
        return f"{self} was killed by signal {-code}" if code < 0 else f"{self} ended with exit code {code}"


def start_worker(context: Context, env_fns: list[Callable[[], Env]], number: int, first: int, stop: int) -> WorkerHandle:
    """
    Start a worker process.

    :param context: of multiprocessing
    :param env_fns: functions that create the environments, those of the other processes among them
    :param number: of its share
    :param first: its first environment
    :param stop: the one after its last
    :return: the process and the connection to it
    :raises ValueError: if a function cannot be sent to it
    """
    ours, theirs = context.Pipe()
    wrapped = [CloudpickleWrapper(env_fn) for env_fn in env_fns[first:stop]]
    # daemon: Python ends it when the script ends without closing the environments.
    process = context.Process(target=worker.main, args=(theirs, ours, wrapped, number, first), daemon=True)
    try:
        process.start()
    except (TypeError, AttributeError, ValueError, pickle.PicklingError) as error:
        ours.close()
        alternative = ", or use start_method='fork'" if "fork" in multiprocessing.get_all_start_methods() else ""
        raise ValueError(
            f"env_fns: a function of environments {first} to {stop - 1} cannot be sent to another process: {error}. "
            f"Create inside the function what cannot be pickled{alternative}"
        ) from error
    finally:
        theirs.close()
    return WorkerHandle(number, process, ours, first, stop)
