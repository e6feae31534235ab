"""The trainer's side of the worker processes: starting and ending them, orders and answers."""

import multiprocessing
import pickle
import select
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_policyopt.envs.shared import memory, worker
from sb3_policyopt.envs.shared.memory import Alertness, Block, Memory, Plan, fence
from sb3_policyopt.envs.shared.messages import NO_ARGUMENTS, Failure, Order, unpack
from sb3_policyopt.parallel.mailboxes import yield_core
from sb3_policyopt.rollout.env_workers import WorkerDiedError

LOOK = 1.0
"""Seconds between two looks at whether a silent worker still lives."""

ONE_WRITE = 2**14
"""Bytes of a message that goes into a pipe as a whole or not at all."""

LAST_WORDS = 5.0
"""Seconds that a worker has to end after it has closed its environments."""


def split(n_envs: int, n_workers: int) -> list[tuple[int, int]]:
    """
    Give every worker neighbouring environments, as many as any other or one more.

    :param n_envs: number of environments
    :param n_workers: not more than that
    :return: of each worker, its first environment and the one after its last
    """
    return list(pairwise(number * n_envs // n_workers for number in range(n_workers + 1)))


class Colleague:
    """
    One worker.

    :param process: where it runs
    :param connection: to it
    :param first: its first environment
    :param stop: the one after its last
    """

    def __init__(self, process: BaseProcess, connection: Connection, first: int, stop: int) -> None:
        self.process, self.connection, self.first, self.stop = process, connection, first, stop
        self.received: list[bytes] = []
        self.numbers: memoryview[int]
        self.letter: memoryview[int]
        # A tenth of the time that `wait` takes, which makes such an object at each call; Windows has none.
        self.poll = select.poll() if hasattr(select, "poll") else None
        if self.poll is not None:
            self.poll.register(connection.fileno(), select.POLLIN)
            self.poll.register(process.sentinel, select.POLLIN)

    def __str__(self) -> str:
        count = self.stop - self.first
        which = f"environment {self.first}" if count == 1 else f"environments {self.first} to {self.stop - 1}"
        return f"The worker process of {which}"

    def has_sent(self, patience: float) -> bool:
        """
        Sleep until the worker sends something or ends.

        :param patience: seconds to wait at most
        :return: whether there is something to receive, which may be that it has closed the connection
        """
        if self.poll is None:
            return self.connection in wait([self.connection, self.process.sentinel], patience)
        return self.connection.fileno() in dict(self.poll.poll(1000 * patience))

    def how_it_ended(self) -> str:
        """A sentence without its full stop."""
        self.process.join(1.0)
        code = self.process.exitcode
        if code is None:
            return f"{self} has closed its connection"
        return f"{self} was killed by signal {-code}" if code < 0 else f"{self} ended with exit code {code}"


class Workers:
    """
    All workers.

    :param env_fns: functions that create the environments
    :param start_method: of the processes
    :param n_workers: number of processes
    :raises ValueError: if a function cannot be sent to a process
    """

    def __init__(self, env_fns: list[Callable[[], Any]], start_method: str, n_workers: int) -> None:
        self.all: list[Colleague] = []
        self.timeout: float | None = None
        self.closed = self.unfinished = False
        self.torn = False  # whether a message was interrupted
        self.spins, self.alertness = False, Alertness()
        self.number = 0  # of the last order
        context = multiprocessing.get_context(start_method)
        try:
            for bounds in split(len(env_fns), n_workers):
                self._start(context, env_fns, *bounds)
            self.answers = self._receive_all()
        except BaseException:
            self.stop()
            raise

    def _start(self, context: Any, env_fns: list[Callable[[], Any]], first: int, stop: int) -> None:
        """
        Start a worker.

        :param context: of multiprocessing
        :param env_fns: functions that create the environments
        :param first: its first environment
        :param stop: the one after its last
        """
        ours, theirs = context.Pipe()
        wrapped = [CloudpickleWrapper(env_fn) for env_fn in env_fns[first:stop]]
        # daemon: Python ends it when the script ends without closing the environments.
        process = context.Process(target=worker.main, args=(theirs, ours, wrapped, len(self.all), first), daemon=True)
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
        self.all.append(Colleague(process, ours, first, stop))

    def share(self, plan: Plan) -> Block:
        """
        Make the shared memory and give it to all.

        :param plan: what for
        :return: the memory
        """
        shared = Memory(memory.size(plan))
        self._begin()
        for colleague in self.all:
            self._send(colleague, "share", pickle.dumps((plan,)))
            shared.send(colleague.connection, colleague.process.pid or 0)
        self._end()
        shared.close_file()
        block = Block(plan, shared.map)
        for number, colleague in enumerate(self.all):
            colleague.numbers = block.numbers[number * Block.NUMBERS : (number + 1) * Block.NUMBERS]
            colleague.letter = block.letters[number]
        self.spins = plan.spins
        return block

    def stop(self, patience: float = 0.0) -> None:
        """
        End all workers, whatever they do.

        :param patience: seconds in which they may end by themselves
        """
        self.closed = True
        self._join(patience)
        for colleague in self.all:
            colleague.process.terminate()
        self._join(1.0)
        for colleague in self.all:
            colleague.process.kill()
            colleague.process.join()
            colleague.connection.close()

    def _join(self, patience: float) -> None:
        end = time.monotonic() + patience
        for colleague in self.all:
            colleague.process.join(max(0.0, end - time.monotonic()))

    # ------------------------------------------------------------------ orders

    def ask(self, name: str, arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """
        Have all workers do something and wait for it.

        :param name: of a method of ``worker.Worker``
        :param arguments: for each worker; none by default
        :return: what each returns
        :raises Exception: what an environment raises
        """
        pickled = [NO_ARGUMENTS] * len(self.all) if arguments is None else [pickle.dumps(given) for given in arguments]
        self._begin()
        for colleague, given in zip(self.all, pickled, strict=True):
            self._send(colleague, name, given)
        return self._end()

    def settle(self) -> None:
        """
        Make sure that nothing is left of an order that was interrupted.

        :raises RuntimeError: if that cannot be
        """
        if self.closed:
            raise RuntimeError("the environments are closed")
        if self.torn:
            self.stop()
            raise RuntimeError("a message to a worker was interrupted half-way: the environments are closed, make them anew")
        if self.unfinished:
            self.number += 1
            for colleague in self.all:
                self._send(colleague, "nothing", NO_ARGUMENTS)
            self._end()

    def _begin(self) -> None:
        """Before each order."""
        self.settle()
        self.number += 1
        self.unfinished = True

    def _end(self) -> list[Any]:
        """Wait for the answers to an order."""
        answers = self._receive_all()
        self.unfinished = False
        return answers

    def _send(self, colleague: Colleague, name: str, arguments: bytes) -> None:
        """
        Send an order.

        :param colleague: to whom
        :param name: of a method
        :param arguments: a pickled tuple
        """
        message = pickle.dumps(Order(self.number, name, arguments))
        try:
            self.torn = len(message) > ONE_WRITE
            colleague.connection.send_bytes(message)
            self.torn = False
        except OSError as error:
            self._lost(colleague, error)
        if self.spins:
            colleague.numbers[Block.KIND] = Block.MESSAGE
            colleague.numbers[Block.ORDER_TIME] = time.perf_counter_ns()
            colleague.numbers[Block.ORDERED] = self.number

    def _receive_all(self) -> list[Any]:
        """Wait for the answers to the last order, and raise what an environment has raised."""
        start = time.monotonic()
        answers = [self._receive(colleague, start) for colleague in self.all]
        for answer in answers:
            if isinstance(answer, Failure):
                self.unfinished = False
                raise unpack(answer)
        return answers

    def _receive(self, colleague: Colleague, start: float) -> Any:
        """
        Wait for the answer to the last order.

        :param colleague: whose
        :param start: when the waiting began
        :return: the answer
        """
        while True:
            while colleague.received:
                number, answer = pickle.loads(colleague.received.pop(0))
                if number == self.number:  # others are answers for which an interrupted order did not wait
                    return answer
            self._listen(colleague, start)

    def _listen(self, colleague: Colleague, start: float) -> None:
        """
        Sleep until a worker sends something.

        :param colleague: which one
        :param start: when the waiting began
        :raises WorkerDiedError: if it has ended
        :raises TimeoutError: if it takes too long
        """
        patience = LOOK if self.timeout is None else min(LOOK, max(0.0, start + self.timeout - time.monotonic()))
        if colleague.has_sent(patience):
            try:
                self.torn = True
                message = colleague.connection.recv_bytes()
                self.torn = False
            except (EOFError, OSError) as error:
                self._lost(colleague, error)
            if message:  # otherwise it only wakes this process
                colleague.received.append(message)
            return
        if not colleague.process.is_alive():
            self._lost(colleague, None)
        if self.timeout is not None and time.monotonic() - start >= self.timeout:
            self.stop()
            raise TimeoutError(
                f"{colleague} has not answered for {self.timeout} seconds. The environments are closed. "
                "If they may take longer, raise `timeout`"
            )

    def _lost(self, colleague: Colleague, error: BaseException | None) -> NoReturn:
        """
        End everything after the end of a worker.

        :param colleague: which one
        :param error: how it was noticed
        :raises WorkerDiedError: always
        """
        ended = colleague.how_it_ended()
        if self.number == 0:
            ended += (
                " before it had made its environments. If it says above that the main module must be imported safely, "
                "start the script's work under `if __name__ == '__main__':`"
            )
        self.stop()
        raise WorkerDiedError(f"{ended}. The environments are closed") from error

    # ------------------------------------------------------------------ steps

    def begin_step(self, actions: Sequence[list[Any]] | None = None) -> None:
        """
        Let all workers step.

        :param actions: of each worker's environments; those in the shared memory by default
        """
        if actions is not None or not self.spins:
            given = [NO_ARGUMENTS] * len(self.all) if actions is None else [pickle.dumps((some,)) for some in actions]
            self._begin()
            for colleague, arguments in zip(self.all, given, strict=True):
                self._send(colleague, "step", arguments)
            return
        self._begin()
        for colleague in self.all:
            colleague.numbers[Block.AWAITED] = 0
            colleague.numbers[Block.KIND] = Block.STEP
            colleague.numbers[Block.ORDER_TIME] = time.perf_counter_ns()
            colleague.numbers[Block.ORDERED] = self.number  # seen by the worker after the actions: see SPINS
        fence()
        for colleague in self.all:
            if colleague.numbers[Block.ASLEEP]:
                try:
                    colleague.connection.send_bytes(b"")
                except OSError as error:
                    self._lost(colleague, error)

    def end_step(self) -> list[Any]:
        """
        Wait for the end of the step.

        :return: of each worker, what is not in the shared memory; None if there is nothing
        :raises Exception: what an environment has raised
        """
        if not self.spins:
            return self._end()
        start = time.monotonic()
        letters = [self._letter(colleague, start) for colleague in self.all]
        self.unfinished = False
        for letter in letters:
            if isinstance(letter, Failure):
                raise unpack(letter)
        return letters

    def _letter(self, colleague: Colleague, start: float) -> Any:
        """
        Wait for a worker, and read what is not in the arrays.

        :param colleague: which one
        :param start: when the waiting began
        :return: None if there is nothing
        """
        numbers = colleague.numbers
        if numbers[Block.DONE] < self.number:
            self._stay_awake(numbers)
        while numbers[Block.DONE] < self.number:
            numbers[Block.AWAITED] = 1
            fence()
            if numbers[Block.DONE] < self.number:
                self._listen(colleague, start)
            numbers[Block.AWAITED] = 0
        length = numbers[Block.LETTER]
        if length == Block.BY_PIPE:
            return self._receive(colleague, start)
        return pickle.loads(colleague.letter[:length])[1] if length else None

    def _stay_awake(self, numbers: "memoryview[int]") -> None:
        """
        Look for a while whether a worker is done.

        :param numbers: the worker's
        """
        now = time.perf_counter_ns()
        end = self.alertness.until(now)
        while now < end:
            yield_core()
            now = time.perf_counter_ns()
            if numbers[Block.DONE] >= self.number:
                self.alertness.note(now, numbers[Block.DONE_TIME])
                return
