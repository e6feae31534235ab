"""A worker process of a :class:`.vec_env.SharedMemoryVecEnv`: it steps some of the environments."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_policyopt.envs.shared import memory
from sb3_policyopt.envs.shared.memory import Block, BusyWait, Memory, Plan, fence
from sb3_policyopt.envs.shared.messages import NO_ARGUMENTS, Info, Order, StepInfos, dumps, failure
from sb3_policyopt.parallel.mailboxes import yield_core
from sb3_policyopt.saving.env_state import Env

Description: TypeAlias = tuple[spaces.Space[object], spaces.Space[object], dict[str, list[object]]]
"""Observation space, action space and metadata of an environment."""

GRACE = 5.0
"""Seconds to close the environments after the trainer has ended."""


# ---------------------------------------------------------------------- what SB3's workers can call on an environment


def get_attr(env: Env, name: str) -> object:
    """An attribute of an environment or of what it wraps."""
    return env.get_wrapper_attr(name)


def has_attr(env: Env, name: str) -> bool:
    """Whether there is such an attribute."""
    try:
        env.get_wrapper_attr(name)
    except AttributeError:
        return False
    return True


def set_attr(env: Env, name: str, value: object) -> None:
    """Set an attribute of the outermost wrapper."""
    setattr(env, name, value)


def call_method(env: Env, name: str, arguments: tuple[object, ...], options: dict[str, object]) -> object:
    """What a method of an environment returns."""
    return env.get_wrapper_attr(name)(*arguments, **options)


def render(env: Env) -> object:
    """A picture of an environment."""
    return env.render()


class Rows(Protocol):
    """Rows of an array, to which whatever an environment returns is written."""

    def __setitem__(self, index: int, value: object) -> None:
        """
        Write a row.

        :param index: of the environment in this worker
        :param value: what NumPy can convert
        """


class Worker:
    """
    Some of the environments, and the orders that it executes on them.

    :param connection: to the trainer
    :param number: of this worker
    :param first: number of its first environment
    """

    def __init__(self, connection: Connection, number: int, first: int) -> None:
        self.connection, self.number, self.first = connection, number, first
        self.envs: list[Env] = []
        self.current = 0  # the environment that is called
        self.finished = 0  # number of the last order
        self.spins, self.busy_wait = False, BusyWait()

    def make(self, env_fns: list[Callable[[], Env]]) -> None:
        """
        Make the environments.

        :param env_fns: what makes each
        :raises ValueError: if two of them make the same
        """
        for self.current, make in enumerate(env_fns):
            self.envs.append(_patch_env(make()))
        if len({id(env.unwrapped) for env in self.envs}) < len(self.envs):
            raise ValueError(
                "Two functions in env_fns return the same environment. Each has to create one of its own: "
                "replace `lambda: env` by a function that calls `gym.make()` or the environment's class"
            )

    def _numbered(self) -> Iterator[tuple[int, Env]]:
        """All environments with their numbers here; an exception is then known to come from the last one."""
        for index, env in enumerate(self.envs):
            self.current = index
            yield index, env

    # ------------------------------------------------------------------ orders

    def serve(self) -> None:
        """Execute orders until the order to close."""
        order = None
        while order is None or order.name != "close":
            order = self._next_order()
            answer = self._execute(order)
            if order.name == "step":
                self._answer_step(order.number, answer)
            else:
                self._mark_done(order.number)
                self.connection.send_bytes(answer)

    def _execute(self, order: Order) -> bytes:
        """
        Execute an order and pickle the result.

        :param order: the order
        :return: number of the order, and the result or a :class:`Failure`; no bytes for a step without infos
        """
        try:
            result = getattr(self, order.name)(*pickle.loads(order.arguments))
            return b"" if result is None and order.name == "step" else dumps((order.number, result))
        except Exception as error:
            return dumps((order.number, failure(error, f"environment {self.first + self.current}")))

    def _next_order(self) -> Order:
        """
        Wait for the next order.

        :return: the order
        """
        while True:
            if self._is_ordered() and self.numbers[Block.KIND] == Block.STEP:
                return Order(self.numbers[Block.ORDERED], "step", NO_ARGUMENTS)
            message = self.connection.recv_bytes()
            if self.spins:
                self.numbers[Block.WORKER_SLEEPS] = 0
            if message:  # an empty message only says that the trainer has written a number
                order: Order = pickle.loads(message)
                if order.number > self.finished:  # otherwise the trainer was interrupted before it had written the number
                    return order

    def _is_ordered(self) -> bool:
        """
        Busy-wait for a new order.

        :return: whether there is one; if not, the shared memory says that this worker sleeps
        """
        if not self.spins:
            return False
        numbers = self.numbers
        if numbers[Block.ORDERED] > self.finished:
            return True
        now = time.perf_counter_ns()
        end = self.busy_wait.until(now)
        while now < end:
            yield_core()
            now = time.perf_counter_ns()
            if numbers[Block.ORDERED] > self.finished:
                self.busy_wait.record(now, numbers[Block.ORDER_TIME])
                return True
        numbers[Block.WORKER_SLEEPS] = 1
        fence()
        if numbers[Block.ORDERED] <= self.finished:
            return False
        numbers[Block.WORKER_SLEEPS] = 0
        return True

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

    # ------------------------------------------------------------------ the orders

    def share(self, plan: Plan) -> None:
        """
        Map the shared memory, which comes next through the pipe.

        :param plan: what lies in it
        """
        block = Block(plan, Memory.receive(self.connection, memory.size(plan)))
        here = slice(*plan.bounds[self.number])
        start = self.number * Block.NUMBERS
        self.numbers = block.numbers[start : start + Block.NUMBERS]
        self.block, self.here, self.infos = block, here, block.infos[self.number]
        self.rewards, self.dones = cast(Rows, block.rewards[here]), cast(Rows, block.dones[here])
        self.observations = {name: cast(Rows, array[here]) for name, array in block.observations.items()}
        self.spins = plan.spins

    def set_action_layout(self, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        """
        Set type and shape of the actions in the shared memory from now on.

        :param dtype: of the actions
        :param shape: of the actions of all environments
        """
        self.actions = self.block.actions_as(dtype, shape)[self.here]

    def describe(self) -> Description:
        """Observation space, action space and metadata of the first environment."""
        return self.envs[0].observation_space, self.envs[0].action_space, self.envs[0].metadata

    def reset(self, seeds: list[int | None], options: list[dict[str, object]]) -> list[Info]:
        """
        Reset all environments.

        :param seeds: of each
        :param options: of each
        :return: their infos
        """
        infos = []
        for index, env in self._numbered():
            given = {"options": options[index]} if options[index] else {}
            observation, info = env.reset(seed=seeds[index], **given)
            self._save(observation)
            infos.append(info)
        return infos

    def step(self, actions: Iterable[object] | None = None) -> StepInfos | None:
        """
        Step all environments, and reset those whose episode ends.

        :param actions: one for each; those in the shared memory by default
        :return: of those whose info holds something besides ``TimeLimit.truncated``, which is False: number, info, and that of
            the reset if there was one; None if there are none
        """
        held: StepInfos = {}
        if actions is None:
            actions = self.actions.copy()  # a copy, which the environments may keep
        for (index, env), action in zip(self._numbered(), actions, strict=True):
            observation, self.rewards[index], terminated, truncated, info = env.step(action)
            done = self.dones[index] = terminated or truncated
            cut_off = truncated and not terminated
            reset_info = None
            if done or info or cut_off is not False or type(info) is not dict:
                info["TimeLimit.truncated"] = cut_off
                if done:
                    info["terminal_observation"] = observation
                    observation, reset_info = env.reset()
                held[self.first + index] = info, reset_info
            self._save(observation)
        return held or None

    def _save(self, observation: Any) -> None:
        for name, array in self.observations.items():
            array[self.current] = observation if name is None else observation[name]

    def call(self, function: Callable[..., object], indices: list[int], arguments: bytes) -> list[object]:
        """
        Call a function on some of the environments.

        :param function: takes an environment and the arguments
        :param indices: which of this worker's, in which order
        :param arguments: a pickled tuple, of which each environment gets one of its own
        :return: the results
        """
        answers = []
        for self.current in indices:
            answers.append(function(self.envs[self.current], *pickle.loads(arguments)))
        return answers

    def no_operation(self) -> None:
        """The answer shows that all earlier orders are done."""

    def close(self) -> None:
        """Close all environments."""
        for _, env in self._numbered():
            env.close()


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
    :param number: of this worker
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
            answer = failure(error, f"environment {first + worker.current}")
        connection.send_bytes(dumps((0, answer)))
        worker.serve()
    except (EOFError, ConnectionError):  # the trainer has ended or closed the connection
        worker.close()
