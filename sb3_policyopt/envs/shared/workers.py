"""All processes that step, as the trainer sees them: starting and ending workers, orders and answers."""

import contextlib
import multiprocessing
import pickle
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NoReturn, cast

from sb3_policyopt.envs.shared import memory
from sb3_policyopt.envs.shared.memory import Block, BusyWait, Memory, Plan, fence, ordered
from sb3_policyopt.envs.shared.messages import NO_ARGUMENTS, Failure, Order, StepInfos, unpack
from sb3_policyopt.envs.shared.share import TrainersShare
from sb3_policyopt.envs.shared.worker_handle import Context, WorkerHandle, start_worker
from sb3_policyopt.errors import WorkerDiedError
from sb3_policyopt.parallel.mailboxes import yield_core
from sb3_policyopt.saving.env_state import Env

CHECK_INTERVAL = 1.0
"""Seconds between two checks of whether a worker that sends nothing still exists."""

ATOMIC_WRITE = 2**14
"""Bytes of a message that is written into a pipe as a whole or not at all."""

CLOSE_TIMEOUT = 5.0
"""Seconds that a worker has to end after it has closed its environments."""


def split(n_envs: int, n_workers: int) -> list[tuple[int, int]]:
    """
    Distribute the environments: neighbouring ones to each process, and to each as many as to any other or one more.

    :param n_envs: number of environments
    :param n_workers: number of processes, not more than that
    :return: of each process, its first environment and the one after its last; the first process gets no more than any other
    """
    return list(pairwise(number * n_envs // n_workers for number in range(n_workers + 1)))


class Workers:
    """
    All workers, and the trainer's own share of the environments if it has one.

    :param env_fns: functions that create the environments
    :param start_method: of the processes
    :param n_workers: number of processes that step
    :param trainer_steps: whether the trainer is the first of them
    :raises ValueError: if a function cannot be sent to a process
    """

    def __init__(self, env_fns: list[Callable[[], Env]], start_method: str, n_workers: int, trainer_steps: bool) -> None:
        self.all: list[WorkerHandle] = []
        self.bounds = split(len(env_fns), n_workers)
        self.own: TrainersShare | None = TrainersShare(0, 0) if trainer_steps else None
        self.own_step: bytes | None = None  # arguments of a step that the trainer has still to make
        self.timeout: float | None = None
        self.closed = self.unfinished = False
        self.broken = False  # whether a message was interrupted half-way
        self.spins, self.busy_wait = False, BusyWait()
        self.number = 0  # of the last order
        context = cast(Context, multiprocessing.get_context(start_method))
        try:
            for number, bounds in enumerate(self.bounds):
                if number > 0 or self.own is None:
                    self.all.append(start_worker(context, env_fns, number, *bounds))
            own = [] if self.own is None else [self.own.make_and_describe(env_fns[: self.bounds[0][1]])]
            self.answers = self._checked([*own, *self._receive_all()])
        except BaseException:
            self.stop()
            raise

    def share(self, plan: Plan) -> Block:
        """
        Make the shared memory and let all workers open it.

        :param plan: what it holds
        :return: the memory
        """
        shared = Memory(memory.size(plan))
        self._begin()
        for handle in self.all:
            self._send(handle, "share", pickle.dumps((plan,)))
            shared.send(handle.connection, handle.process.pid or 0)
        self._end()
        shared.close_file()
        block = Block(plan, shared.map)
        for handle in self.all:
            handle.numbers, handle.infos = block.numbers_of(handle.number), block.infos[handle.number]
        if self.own is not None:
            self.own.attach(plan, block)
        self.spins = plan.spins
        return block

    def stop(self, timeout: float = 0.0) -> None:
        """
        End all workers, also those that do not respond, and close the trainer's own environments.

        :param timeout: seconds that the workers have to end by themselves
        """
        self.closed, self.own_step = True, None
        self._join(timeout)
        for handle in self.all:
            handle.process.terminate()
        self._join(1.0)
        for handle in self.all:
            handle.process.kill()
            handle.process.join()
            handle.connection.close()
        if self.own is not None:
            with contextlib.suppress(Exception):  # whoever closes hears of them by the order to close
                self.own.close()

    def _join(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        for handle in self.all:
            handle.process.join(max(0.0, end - time.monotonic()))

    # ------------------------------------------------------------------ orders

    def call(self, name: str, arguments: Sequence[tuple[object, ...]] | None = None) -> list[object]:
        """
        Have all processes execute an order, and wait for the results.

        :param name: of a method of ``share.Share``
        :param arguments: for each process; none by default
        :return: what each returns
        :raises Exception: what an environment raises
        """
        pickled = [NO_ARGUMENTS] * len(self.bounds) if arguments is None else [pickle.dumps(given) for given in arguments]
        self._begin()
        for handle in self.all:
            self._send(handle, name, pickled[handle.number])
        return self._end([] if self.own is None else [self.own.answer(Order(self.number, name, pickled[0]))])

    def finish_interrupted(self) -> None:
        """
        Wait for the end of an order that was interrupted.

        :raises RuntimeError: if the environments are closed, or a message was interrupted half-way
        """
        if self.closed:
            raise RuntimeError("the environments are closed")
        if self.broken:
            self.stop()
            raise RuntimeError("a message to a worker was interrupted half-way: the environments are closed, make them anew")
        self.own_step = None
        if self.unfinished:
            self.number += 1
            for handle in self.all:
                self._send(handle, "no_operation", NO_ARGUMENTS)
            self._end()

    def _begin(self) -> None:
        """Before each order."""
        self.finish_interrupted()
        self.number += 1
        self.unfinished = True

    def _end(self, own: Sequence[object] = ()) -> list[object]:
        """
        Wait for the answers to an order.

        :param own: that of the trainer's share, if it has one
        :return: the answers of all processes
        """
        return self._checked([*own, *self._receive_all()])

    def _send(self, handle: WorkerHandle, name: str, arguments: bytes) -> None:
        """
        Send an order.

        :param handle: of the worker
        :param name: of a method
        :param arguments: a pickled tuple
        """
        message = pickle.dumps(Order(self.number, name, arguments))
        try:
            self.broken = len(message) > ATOMIC_WRITE
            handle.connection.send_bytes(message)
            self.broken = False
        except OSError as error:
            self._lost(handle, error)
        if self.spins:
            handle.numbers[Block.ORDER_TIME] = time.perf_counter_ns()
            handle.numbers[Block.ORDERED] = ordered(self.number, Block.MESSAGE)

    def _receive_all(self) -> list[object]:
        """The answers of all workers to the last order, for which it waits."""
        start = time.monotonic()
        return [self._receive(handle, start) for handle in self.all]

    def _checked(self, answers: list[object]) -> list[object]:
        """
        End an order.

        :param answers: of all processes
        :return: the same
        :raises Exception: what an environment has raised
        """
        self.unfinished = False
        for answer in answers:
            if isinstance(answer, Failure):
                raise unpack(answer)
        return answers

    def _receive(self, handle: WorkerHandle, start: float) -> object:
        """
        Wait for the answer to the last order.

        :param handle: of the worker
        :param start: when the waiting began
        :return: the answer
        """
        while True:
            while handle.received:
                number, answer = pickle.loads(handle.received.pop(0))
                if number == self.number:  # others are answers to interrupted orders
                    return answer
            self._wait_for_message(handle, start)

    def _wait_for_message(self, handle: WorkerHandle, start: float) -> None:
        """
        Sleep until a worker sends something.

        :param handle: of the worker
        :param start: when the waiting began
        :raises WorkerDiedError: if it has ended
        :raises TimeoutError: if it takes too long
        """
        left = CHECK_INTERVAL if self.timeout is None else max(0.0, start + self.timeout - time.monotonic())
        if handle.has_sent(min(CHECK_INTERVAL, left)):
            try:
                self.broken = True
                message = handle.connection.recv_bytes()
                self.broken = False
            except (EOFError, OSError) as error:
                self._lost(handle, error)
            if message:  # an empty message only wakes this process
                handle.received.append(message)
            return
        if not handle.process.is_alive():
            self._lost(handle, None)
        if self.timeout is not None and time.monotonic() - start >= self.timeout:
            self.stop()
            raise TimeoutError(
                f"{handle} has not answered for {self.timeout} seconds. The environments are closed. "
                "If they may take longer, raise `timeout`"
            )

    def _lost(self, handle: WorkerHandle, error: BaseException | None) -> NoReturn:
        """
        Stop all workers after one of them has ended.

        :param handle: of the worker that has ended
        :param error: how it was noticed
        :raises WorkerDiedError: always
        """
        ended = handle.how_it_ended()
        if self.number == 0:
            ended += (
                " before it had made its environments. If it says above that the main module must be imported safely, "
                "start the script's work under `if __name__ == '__main__':`"
            )
        self.stop()
        raise WorkerDiedError(f"{ended}. The environments are closed") from error

    # ------------------------------------------------------------------ steps

    def begin_step(self, actions: Sequence[list[object]] | None = None) -> None:
        """
        Let all workers step. The trainer's own share does so in :meth:`end_step`.

        :param actions: of each process's environments; those in the shared memory by default
        """
        given = [NO_ARGUMENTS] * len(self.bounds) if actions is None else [pickle.dumps((some,)) for some in actions]
        self._begin()
        if self.own is not None:
            self.own_step = given[0]
        if actions is not None or not self.spins:
            for handle in self.all:
                self._send(handle, "step", given[handle.number])
            return
        for handle in self.all:
            handle.numbers[Block.TRAINER_SLEEPS] = 0
            handle.numbers[Block.ORDER_TIME] = time.perf_counter_ns()
            handle.numbers[Block.ORDERED] = ordered(self.number, Block.STEP)  # seen by the worker after the actions: see SPINS
        fence()
        for handle in self.all:
            if handle.numbers[Block.WORKER_SLEEPS]:
                try:
                    handle.connection.send_bytes(b"")
                except OSError as error:
                    self._lost(handle, error)

    def end_step(self) -> list[StepInfos | None]:
        """
        Make the trainer's own step, and wait for the end of the workers'.

        :return: of each process, the infos; None if there are none
        :raises Exception: what an environment has raised
        """
        return cast(list[StepInfos | None], self._checked(self._step_answers()))

    def drop_step(self) -> None:
        """End a step whose results nobody needs. Otherwise a worker may see the next order before that of the step."""
        self._step_answers()
        self.unfinished = False

    def _step_answers(self) -> list[object]:
        """Infos or failure of all processes, at the end of the step."""
        own: list[object] = []
        if self.own is not None and self.own_step is not None:
            arguments, self.own_step = self.own_step, None
            own = [self.own.answer(Order(self.number, "step", arguments))]
        start = time.monotonic()
        answer = self._step_infos if self.spins else self._receive
        return [*own, *(answer(handle, start) for handle in self.all)]

    def _step_infos(self, handle: WorkerHandle, start: float) -> object:
        """
        Wait for a worker to end its step, and read the infos.

        :param handle: of the worker
        :param start: when the waiting began
        :return: None if there are none; a failure if an environment has raised an exception
        """
        numbers = handle.numbers
        if numbers[Block.DONE] < self.number:
            self._busy_wait(numbers)
        while numbers[Block.DONE] < self.number:
            numbers[Block.TRAINER_SLEEPS] = 1
            fence()
            if numbers[Block.DONE] < self.number:
                self._wait_for_message(handle, start)
            numbers[Block.TRAINER_SLEEPS] = 0
        length = numbers[Block.INFO_LENGTH]
        if length == Block.BY_PIPE:
            return self._receive(handle, start)
        return pickle.loads(handle.infos[:length])[1] if length else None

    def _busy_wait(self, numbers: "memoryview[int]") -> None:
        """
        Busy-wait until a worker is done, or the time for that is over.

        :param numbers: the worker's
        """
        now = time.perf_counter_ns()
        end = self.busy_wait.until(now)
        while now < end:
            yield_core()
            now = time.perf_counter_ns()
            if numbers[Block.DONE] >= self.number:
                self.busy_wait.record(now, numbers[Block.DONE_TIME])
                return
