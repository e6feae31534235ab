"""A worker process of a :class:`.vec_env.SharedMemoryVecEnv`: it steps some of the environments."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_policyopt.envs.shared import memory
from sb3_policyopt.envs.shared.memory import Alertness, Block, Memory, Plan, fence
from sb3_policyopt.envs.shared.messages import NO_ARGUMENTS, Order, dumps, failure
from sb3_policyopt.parallel.mailboxes import yield_core

Env = gym.Env[Any, Any]

GRACE = 5.0
"""Seconds to close the environments after the trainer has ended."""


# ------------------------------------------------------------- what an environment can be asked, as SubprocVecEnv's workers do


def get_attr(env: Env, name: str) -> Any:
    """An attribute of an environment or of what it wraps."""
    return env.get_wrapper_attr(name)


def has_attr(env: Env, name: str) -> bool:
    """Whether there is such an attribute."""
    try:
        env.get_wrapper_attr(name)
    except AttributeError:
        return False
    return True


def set_attr(env: Env, name: str, value: Any) -> None:
    """Set an attribute of the outermost wrapper."""
    setattr(env, name, value)


def call_method(env: Env, name: str, arguments: tuple[Any, ...], words: dict[str, Any]) -> Any:
    """What a method of an environment returns."""
    return env.get_wrapper_attr(name)(*arguments, **words)


def render(env: Env) -> Any:
    """A picture of an environment."""
    return env.render()


class Worker:
    """
    Some of the environments, and the trainer's orders to them.

    :param connection: to the trainer
    :param number: of this worker
    :param first: number of its first environment
    """

    def __init__(self, connection: Connection, number: int, first: int) -> None:
        self.connection, self.number, self.first = connection, number, first
        self.envs: list[Env] = []
        self.at = 0  # the environment that is being asked
        self.finished = 0  # number of the last order
        self.spins, self.alertness = False, Alertness()

    def make(self, env_fns: list[Callable[[], Env]]) -> None:
        """
        Make the environments.

        :param env_fns: what makes each
        :raises ValueError: if two of them make the same
        """
        for self.at, make in enumerate(env_fns):
            self.envs.append(_patch_env(make()))
        if len({id(env.unwrapped) for env in self.envs}) < len(self.envs):
            raise ValueError(
                "Two functions in env_fns return the same environment. Each has to create one of its own: "
                "replace `lambda: env` by a function that calls `gym.make()` or the environment's class"
            )

    def _in_turn(self) -> Iterator[tuple[int, Env]]:
        """All environments with their numbers here; an exception is then known to come from the last one."""
        for index, env in enumerate(self.envs):
            self.at = index
            yield index, env

    # ------------------------------------------------------------------ orders

    def serve(self) -> None:
        """Do as told until told to close."""
        order = None
        while order is None or order.name != "close":
            order = self._next_order()
            answer = self._answer(order)
            if order.name == "step":
                self._report(order.number, answer)
            else:
                self._note(order.number)
                self.connection.send_bytes(answer)

    def _answer(self, order: Order) -> bytes:
        """
        Do something and pickle what comes out.

        :param order: what to do
        :return: number of the order, and the result or a :class:`Failure`; no bytes for a step about which there is nothing
            to say
        """
        try:
            result = getattr(self, order.name)(*pickle.loads(order.arguments))
            return b"" if result is None and order.name == "step" else dumps((order.number, result))
        except Exception as error:
            return dumps((order.number, failure(error, f"environment {self.first + self.at}")))

    def _next_order(self) -> Order:
        """
        Wait for it.

        :return: the order
        """
        while True:
            if self._is_ordered() and self.numbers[Block.KIND] == Block.STEP:
                return Order(self.numbers[Block.ORDERED], "step", NO_ARGUMENTS)
            message = self.connection.recv_bytes()
            if self.spins:
                self.numbers[Block.ASLEEP] = 0
            if message:  # otherwise the trainer only says that it has written a number
                order: Order = pickle.loads(message)
                if order.number > self.finished:  # otherwise the trainer was interrupted before it could write the number
                    return order

    def _is_ordered(self) -> bool:
        """
        Look for a new order, for a while.

        :return: whether there is one; if not, the trainer has been told that this worker sleeps
        """
        if not self.spins:
            return False
        numbers = self.numbers
        if numbers[Block.ORDERED] > self.finished:
            return True
        now = time.perf_counter_ns()
        end = self.alertness.until(now)
        while now < end:
            yield_core()
            now = time.perf_counter_ns()
            if numbers[Block.ORDERED] > self.finished:
                self.alertness.note(now, numbers[Block.ORDER_TIME])
                return True
        numbers[Block.ASLEEP] = 1
        fence()
        if numbers[Block.ORDERED] <= self.finished:
            return False
        numbers[Block.ASLEEP] = 0
        return True

    def _note(self, number: int) -> None:
        """
        Write down what is done.

        :param number: of the order
        """
        self.finished = number
        if self.spins:
            self.numbers[Block.DONE_TIME] = time.perf_counter_ns()
            self.numbers[Block.DONE] = number

    def _report(self, number: int, letter: bytes) -> None:
        """
        Tell the trainer that a step is done.

        :param number: of the order
        :param letter: what is not in the arrays
        """
        if not self.spins:
            self._note(number)
            self.connection.send_bytes(letter or dumps((number, None)))
            return
        by_pipe = len(letter) > len(self.letter)
        if not by_pipe:
            self.letter[: len(letter)] = letter
        self.numbers[Block.LETTER] = Block.BY_PIPE if by_pipe else len(letter)
        self._note(number)
        fence()
        if by_pipe:
            self.connection.send_bytes(letter)
        elif self.numbers[Block.AWAITED]:
            self.connection.send_bytes(b"")

    # ------------------------------------------------------------------ what may be ordered

    def share(self, plan: Plan) -> None:
        """
        Map the shared memory, which comes next through the pipe.

        :param plan: what lies in it
        """
        block = Block(plan, Memory.receive(self.connection, memory.size(plan)))
        here = slice(*plan.bounds[self.number])
        start = self.number * Block.NUMBERS
        self.numbers = block.numbers[start : start + Block.NUMBERS]
        self.block, self.here, self.letter = block, here, block.letters[self.number]
        self.rewards, self.dones = block.rewards[here], block.dones[here]
        self.observations = {name: array[here] for name, array in block.observations.items()}
        self.spins = plan.spins

    def look_for_actions(self, dtype: Any, shape: tuple[int, ...]) -> None:
        """
        How actions will lie in the shared memory from now on.

        :param dtype: of the actions
        :param shape: of the actions of all environments
        """
        self.actions = self.block.actions_as(dtype, shape)[self.here]

    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any], dict[str, Any]]:
        """Observation space, action space and metadata of the first environment."""
        return self.envs[0].observation_space, self.envs[0].action_space, self.envs[0].metadata

    def reset(self, seeds: list[int | None], options: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Reset all environments.

        :param seeds: of each
        :param options: of each
        :return: their infos
        """
        infos = []
        for index, env in self._in_turn():
            words = {"options": options[index]} if options[index] else {}
            observation, info = env.reset(seed=seeds[index], **words)
            self._save(observation)
            infos.append(info)
        return infos

    def step(self, actions: Iterable[Any] | None = None) -> dict[int, tuple[dict[str, Any], dict[str, Any] | None]] | None:
        """
        Step all environments, and reset those whose episode ends.

        :param actions: one for each; those in the shared memory by default
        :return: of those whose info holds something besides ``TimeLimit.truncated``, which is False: number, info, and that of
            the reset if there was one; None if there are none
        """
        held: dict[int, tuple[dict[str, Any], dict[str, Any] | None]] = {}
        if actions is None:
            actions = self.actions.copy()  # theirs to keep
        for (index, env), action in zip(self._in_turn(), actions, strict=True):
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
            array[self.at] = observation if name is None else observation[name]

    def ask(self, question: Callable[..., Any], indices: list[int], arguments: bytes) -> list[Any]:
        """
        Ask some of the environments something.

        :param question: takes an environment and the arguments
        :param indices: which of this worker's, in which order
        :param arguments: a pickled tuple, of which each environment gets one of its own
        :return: the answers
        """
        answers = []
        for self.at in indices:
            answers.append(question(self.envs[self.at], *pickle.loads(arguments)))
        return answers

    def nothing(self) -> None:
        """Answer, so that the trainer knows that all orders before are done."""

    def close(self) -> None:
        """Close all environments."""
        for _, env in self._in_turn():
            env.close()


# ---------------------------------------------------------------------- the process


def end_with_the_trainer() -> None:
    """Wait until the trainer is gone, give the environments some seconds to close, and end this process in any case."""
    parent, number = multiprocessing.parent_process(), os.getppid()
    assert parent is not None
    while parent.is_alive() and os.getppid() == number:  # either may fail: others may hold its pipe, or have started this one
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
    # Ctrl-C reaches this process, too, but it is the trainer's to say what becomes of it.
    signal.signal(signal.SIGINT, lambda *_: None)
    threading.Thread(target=end_with_the_trainer, daemon=True).start()
    worker = Worker(connection, number, first)
    try:
        try:
            worker.make([wrapper.var for wrapper in env_fns])
            answer: Any = worker.spaces()
        except Exception as error:
            answer = failure(error, f"environment {first + worker.at}")
        connection.send_bytes(dumps((0, answer)))
        worker.serve()
    except (EOFError, ConnectionError):  # the trainer is gone, or has heard enough
        worker.close()
