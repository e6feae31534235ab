"""A worker process of a :class:`.vec_env.SharedMemoryVecEnv`: it steps some of the environments."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from multiprocessing.connection import Connection

from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

from sb3_policyopt.envs.shared import memory
from sb3_policyopt.envs.shared.memory import Block, BusyWait, Memory, Plan, fence, number_and_kind
from sb3_policyopt.envs.shared.messages import NO_ARGUMENTS, Order, dumps, failure
from sb3_policyopt.envs.shared.share import Share
from sb3_policyopt.parallel.mailboxes import yield_core

GRACE = 5.0
"""Seconds to close the environments after the trainer has ended."""


class Worker(Share):
    """
    The environments of a worker process, which gets its orders from the trainer.

    :param connection: to the trainer
    :param number: of this share of the environments
    :param first: number of its first environment
    """

    def __init__(self, connection: Connection, number: int, first: int) -> None:
        super().__init__(number, first)
        self.connection = connection
        self.finished = 0  # number of the last order
        self.spins, self.busy_wait = False, BusyWait()

    # ------------------------------------------------------------------ orders

    def serve(self) -> None:
        """Execute orders until the order to close."""
        order = None
        while order is None or order.name != "close":
            order = self._next_order()
            answer = self._answer(order)
            if order.name == "step":
                self._answer_step(order.number, answer)
            else:
                self._mark_done(order.number)
                self.connection.send_bytes(answer)

    def _answer(self, order: Order) -> bytes:
        """
        Execute an order and pickle the result.

        :param order: the order
        :return: number of the order, and the result or a :class:`Failure`; no bytes for a step without infos
        """
        try:
            result = self.execute(order)
            return b"" if result is None and order.name == "step" else dumps((order.number, result))
        except Exception as error:
            return dumps((order.number, failure(error, self.where())))

    def _next_order(self) -> Order:
        """
        Wait for the next order.

        :return: the order
        """
        while True:
            number, kind = self._await_number()
            if number > self.finished and kind == Block.STEP:
                return Order(number, "step", NO_ARGUMENTS)
            message = self.connection.recv_bytes()
            if self.spins:
                self.numbers[Block.WORKER_SLEEPS] = 0
            if message:  # an empty message only says that the trainer has written a number
                order: Order = pickle.loads(message)
                if order.number > self.finished:  # otherwise the trainer was interrupted before it had written the number
                    return order

    def _await_number(self) -> tuple[int, int]:
        """
        Busy-wait for a new order.

        :return: number and kind of the last one; if it is not new, the shared memory says that this worker sleeps
        """
        if not self.spins:
            return self.finished, Block.MESSAGE
        numbers = self.numbers
        last = number_and_kind(numbers[Block.ORDERED])
        if last[0] > self.finished:
            return last
        now = time.perf_counter_ns()
        end = self.busy_wait.until(now)
        while now < end:
            yield_core()
            now = time.perf_counter_ns()
            last = number_and_kind(numbers[Block.ORDERED])
            if last[0] > self.finished:
                self.busy_wait.record(now, numbers[Block.ORDER_TIME])
                return last
        numbers[Block.WORKER_SLEEPS] = 1
        fence()
        last = number_and_kind(numbers[Block.ORDERED])
        if last[0] > self.finished:
            numbers[Block.WORKER_SLEEPS] = 0
        return last

    def _mark_done(self, number: int) -> None:
        """
        Record that an order is done.

        :param number: of the order
        """
        self.finished = number
        if self.spins:
            self.numbers[Block.DONE_TIME] = time.perf_counter_ns()
            self.numbers[Block.DONE] = number

    def _answer_step(self, number: int, infos: bytes) -> None:
        """
        Send the infos of a step and record that it is done.

        :param number: of the order
        :param infos: pickled; no bytes if there are none
        """
        if not self.spins:
            self._mark_done(number)
            self.connection.send_bytes(infos or dumps((number, None)))
            return
        by_pipe = len(infos) > len(self.infos)
        if not by_pipe:
            self.infos[: len(infos)] = infos
        self.numbers[Block.INFO_LENGTH] = Block.BY_PIPE if by_pipe else len(infos)
        self._mark_done(number)
        fence()
        if by_pipe:
            self.connection.send_bytes(infos)
        elif self.numbers[Block.TRAINER_SLEEPS]:
            self.connection.send_bytes(b"")

    def share(self, plan: Plan) -> None:
        """
        Map the shared memory, which comes next through the pipe.

        :param plan: what lies in it
        """
        block = Block(plan, Memory.receive(self.connection, memory.size(plan)))
        self.attach(plan, block)
        self.numbers, self.infos = block.numbers_of(self.number), block.infos[self.number]
        self.spins = plan.spins


# ---------------------------------------------------------------------- the process


def end_with_the_trainer() -> None:
    """Wait until the trainer has ended, then ``GRACE`` seconds for the environments to close, and end this process."""
    parent, number = multiprocessing.parent_process(), os.getppid()
    assert parent is not None
    while (
        parent.is_alive() and os.getppid() == number
    ):  # either may fail: another process may hold the pipe, or have started this one
        parent.join(1.0)
    time.sleep(GRACE)
    os._exit(1)


def main(connection: Connection, trainers_end: Connection, env_fns: list[CloudpickleWrapper], number: int, first: int) -> None:
    """
    What the process does.

    :param connection: to the trainer
    :param trainers_end: of the same pipe, which this process may have inherited
    :param env_fns: what makes its environments
    :param number: of its share of the environments
    :param first: number of its first environment
    """
    trainers_end.close()
    # Ctrl-C reaches this process, too; the trainer decides whether the workers end.
    signal.signal(signal.SIGINT, lambda *_: None)
    threading.Thread(target=end_with_the_trainer, daemon=True).start()
    worker = Worker(connection, number, first)
    try:
        try:
            worker.make([wrapper.var for wrapper in env_fns])
            answer: object = worker.describe()
        except Exception as error:
            answer = failure(error, worker.where())
        connection.send_bytes(dumps((0, answer)))
        worker.serve()
    except (EOFError, ConnectionError):  # the trainer has ended or closed the connection
        worker.close()
