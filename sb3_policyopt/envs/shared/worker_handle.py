"""One worker process, as the trainer sees it."""

import select
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess


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
