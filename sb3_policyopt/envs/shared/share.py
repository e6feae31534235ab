"""Some of the environments of a :class:`.vec_env.SharedMemoryVecEnv`, in whatever process, and the orders for them."""

import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_policyopt.envs.shared.memory import Block, Plan
from sb3_policyopt.envs.shared.messages import Failure, Info, Order, StepInfos, dumps, is_constant, told
from sb3_policyopt.saving.env_state import Env

Description: TypeAlias = tuple[spaces.Space[object], spaces.Space[object], dict[str, list[object]]]
"""Observation space, action space and metadata of an environment."""


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


class Share:
    """
    Some of the environments, and the orders that can be executed on them.

    :param number: of this share
    :param first: number of its first environment
    """

    def __init__(self, number: int, first: int) -> None:
        self.number, self.first = number, first
        self.envs: list[Env] = []
        self.current = 0  # the environment that is called

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

    def where(self) -> str:
        """The environment that is called, for error messages."""
        return f"environment {self.first + self.current}"

    # ------------------------------------------------------------------ orders

    def execute(self, order: Order) -> object:
        """
        Execute an order.

        :param order: the order
        :return: what the method returns
        """
        return getattr(self, order.name)(*pickle.loads(order.arguments))

    def attach(self, plan: Plan, block: Block) -> None:
        """
        Use the shared memory from now on.

        :param plan: what lies in it
        :param block: the memory
        """
        here = slice(*plan.bounds[self.number])
        self.block, self.here = block, here
        self.rewards, self.dones = cast(Rows, block.rewards[here]), cast(Rows, block.dones[here])
        self.observations = {name: cast(Rows, array[here]) for name, array in block.observations.items()}

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


class TrainersShare(Share):
    """
    Environments in the trainer's own process.

    Arguments and results are copied as if they were sent, so that no environment has an object that the trainer has, too.
    """

    def make_and_describe(self, env_fns: list[Callable[[], Env]]) -> object:
        """
        Make the environments.

        :param env_fns: what makes each
        :return: what :meth:`describe` returns, or a :class:`Failure`
        """
        try:
            self.make(env_fns)
            return self.describe()
        except Exception as error:
            return self._failure(error)

    def answer(self, order: Order) -> object:
        """
        Execute an order.

        :param order: the order
        :return: what a worker sends: the result, or a :class:`Failure`
        """
        try:
            result = self.execute(order)
            return self._sent(cast(StepInfos | None, result)) if order.name == "step" else pickle.loads(dumps(result))
        except Exception as error:
            return self._failure(error)

    def _failure(self, error: Exception) -> Failure:
        """
        Pack an exception of the current environment.

        :param error: the exception
        :return: as from a worker, with the exception itself
        """
        return Failure(error, told(error, self.where()))

    @staticmethod
    def _sent(infos: StepInfos | None) -> StepInfos | None:
        """Copies of infos: those of plain numbers and texts without a pickle, which takes ten times as long."""
        if infos is None:
            return None
        return {
            index: (info.copy(), None) if reset_info is None and is_constant(info) else pickle.loads(dumps((info, reset_info)))
            for index, (info, reset_info) in infos.items()
        }

    def close(self) -> None:
        """Close all environments, once."""
        try:
            super().close()
        finally:
            self.envs = []
