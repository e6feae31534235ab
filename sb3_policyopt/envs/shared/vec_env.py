"""A ``SubprocVecEnv`` for environments whose steps take less time than the messages to a process."""

import contextlib
import multiprocessing
import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

from sb3_policyopt.envs.shared import memory, share
from sb3_policyopt.envs.shared.memory import Plan
from sb3_policyopt.envs.shared.messages import Info
from sb3_policyopt.envs.shared.share import Description
from sb3_policyopt.envs.shared.workers import CLOSE_TIMEOUT, Workers
from sb3_policyopt.errors import WorkerDiedError
from sb3_policyopt.saving.env_state import Env

NUMBERS = "biufc"
"""Kinds of NumPy's types that can lie in shared memory."""


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SharedMemoryVecEnv(SubprocVecEnv):
    """
    A ``SubprocVecEnv`` for many short steps: each worker process steps several environments, and observations, actions,
    rewards and flags lie in memory that all share. Results are those of ``DummyVecEnv``.

        env = make_vec_env("HalfCheetah-v5", n_envs=8, vec_env_cls=SharedMemoryVecEnv)

    What an environment raises is raised here, with the worker's traceback as its cause; the environments can still be used.
    Infos, attributes, and arguments and results of methods must be picklable, as for ``SubprocVecEnv``. All methods raise
    ``WorkerDiedError`` if a worker has ended, and ``TimeoutError`` if one takes too long; the environments are then closed.

    :param env_fns: functions that create the environments
    :param start_method: of the worker processes, see :mod:`multiprocessing`; as for ``SubprocVecEnv``, "forkserver" by default
        and "spawn" where there is none, which need ``if __name__ == "__main__":`` in scripts
    :param n_workers: number of processes that step, at most one for each environment; by default as many as there are cores
    :param timeout: seconds that a worker may take to step, reset or call its environments; no limit by default
    :param trainer_steps: whether this process is one of those that step. It is faster on few cores. The first environments are
        then in this process, as with ``DummyVecEnv``: they use its global random generators, ``timeout`` does not interrupt
        them, and a crash of theirs ends this process
    :raises ValueError: if an argument makes no sense, a function cannot be sent to a process, or observations are not arrays
        of numbers
    """

    def __init__(
        self,
        env_fns: list[Callable[[], Env]],
        start_method: str | None = None,
        n_workers: int | None = None,
        timeout: float | None = None,
        trainer_steps: bool = False,
    ) -> None:
        if not env_fns:
            raise ValueError("env_fns is empty: give a function for each environment")
        if n_workers is not None and n_workers < 1:
            raise ValueError(f"n_workers must be at least 1, got {n_workers}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be positive, got {timeout}; leave it out to wait without limit")
        if start_method is None:
            start_method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.waiting = False
        self._results: VecEnvStepReturn | None = None
        n_processes = min(n_workers or available_cores(), len(env_fns))
        self.workers = Workers(list(env_fns), start_method, n_processes, trainer_steps)
        try:
            observation_space, action_space, metadata = cast(Description, self.workers.answers[0])
            self._block = self.workers.share(self._plan(observation_space, action_space))
            self._actions = self._block.actions_as(np.dtype(np.uint8), (0,))  # none yet
            # VecEnv's, not SubprocVecEnv's, which would start processes.
            VecEnv.__init__(self, len(env_fns), observation_space, action_space)
        except BaseException:
            self.workers.stop()
            raise
        self.metadata = metadata
        self.processes = [handle.process for handle in self.workers.all]
        self.workers.timeout = timeout

    def _plan(self, observation_space: spaces.Space[object], action_space: spaces.Space[object]) -> Plan:
        """
        What the shared memory has to hold.

        :param observation_space: of an environment
        :param action_space: of an environment
        :return: the plan
        """
        names, shapes, dtypes = obs_space_info(observation_space)
        for name in names:
            if dtypes[name] is None or np.dtype(dtypes[name]).kind not in NUMBERS:
                raise ValueError(
                    f"the observation space {observation_space} does not consist of arrays of numbers, which "
                    "SharedMemoryVecEnv needs"
                )
        arrays = [(name, shapes[name], np.dtype(dtypes[name])) for name in names]
        action_bytes = 0 if action_space.shape is None else 8 * int(np.prod(action_space.shape))
        return Plan(self.workers.bounds, arrays, action_bytes, memory.SPINS)

    @property
    def closed(self) -> bool:  # type: ignore[override]
        """Whether the environments can no longer be used."""
        return self.workers.closed

    def close(self) -> None:
        """Close the environments and end the workers."""
        if self.closed:
            return
        self.waiting = False
        try:
            if not self.workers.broken:
                with contextlib.suppress(WorkerDiedError):
                    self.workers.call("close")
        finally:
            self.workers.stop(CLOSE_TIMEOUT)

    # ------------------------------------------------------------------ steps

    def step_async(self, actions: np.ndarray) -> None:
        """
        Let all environments begin a step.

        :param actions: one for each environment
        """
        if self.waiting:
            raise RuntimeError("step_async() was called twice without step_wait()")
        if len(actions) != self.num_envs:
            raise ValueError(f"actions: {len(actions)} of them for {self.num_envs} environments")
        self.workers.finish_interrupted()  # a worker might still read the earlier actions
        if self._fits(actions):
            self._actions[...] = actions
            self.workers.begin_step()
        else:
            self.workers.begin_step([list(actions[first:stop]) for first, stop in self.workers.bounds])
        self.waiting = True

    def _fits(self, actions: np.ndarray) -> bool:
        """
        Prepare the shared memory for actions of that type and shape.

        :param actions: one for each environment
        :return: False if they do not fit there
        """
        if type(actions) is not np.ndarray:
            return False
        if actions.dtype == self._actions.dtype and actions.shape == self._actions.shape:
            return True
        if actions.dtype.kind not in NUMBERS or actions.nbytes > self._block.actions.nbytes:
            return False
        layout = actions.dtype, actions.shape
        self.workers.call("set_action_layout", [layout] * len(self.workers.bounds))
        self._actions = self._block.actions_as(*layout)
        return True

    def step_wait(self) -> VecEnvStepReturn:
        """
        Wait for the end of the step.

        :return: observations, rewards, whether episodes have ended, infos
        """
        if not self.waiting:
            raise RuntimeError("step_wait() needs a step_async() before")
        self.waiting = False
        results, self._results = self._results or self._collect(), None
        return results

    def _collect(self) -> VecEnvStepReturn:
        """Wait for all processes, and copy the results, so that later steps do not change them."""
        answers = self.workers.end_step()
        infos: list[Info] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for of_process in answers:
            for index, (info, reset_info) in of_process.items() if of_process else ():
                infos[index] = info
                if reset_info is not None:
                    self.reset_infos[index] = reset_info
        return self._observations(), self._block.rewards.copy(), self._block.dones.copy(), infos

    def _observations(self) -> VecEnvObs:
        """A copy of the observations in the shared memory."""
        arrays = OrderedDict((name, array.copy()) for name, array in self._block.observations.items())  # as DummyVecEnv
        return dict_to_obs(self.observation_space, arrays)

    # ------------------------------------------------------------------ everything else

    def _call(self, name: str, arguments: Sequence[tuple[object, ...]]) -> list[object]:
        """
        Have all processes execute an order, after the step under way, whose results are kept for ``step_wait``.

        :param name: of a method of ``share.Share``
        :param arguments: for each process
        :return: what each returns
        """
        if self.waiting and self._results is None:
            self.waiting = False
            self._results = self._collect()
            self.waiting = True
        return self.workers.call(name, arguments)

    def reset(self) -> VecEnvObs:
        """
        Reset all environments, with the seeds and options that have been given since the last time.

        :return: their first observations
        """
        under_way = self.waiting and self._results is None
        self.waiting, self._results = False, None
        if under_way:
            self.workers.drop_step()
        here = [slice(*bounds) for bounds in self.workers.bounds]
        infos = self._call("reset", [(self._seeds[part], self._options[part]) for part in here])
        self.reset_infos = [info for part in cast(list[list[Info]], infos) for info in part]
        self._reset_seeds()
        self._reset_options()
        return self._observations()

    def _call_envs(self, indices: VecEnvIndices, function: Callable[..., object], *arguments: object) -> list[Any]:
        """
        Call a function on environments.

        :param indices: which; all by default
        :param function: takes an environment and the arguments
        :param arguments: for the function
        :return: the results, in the order of the indices
        """
        called = [range(self.num_envs)[index] for index in self._get_indices(indices)]
        pickled = pickle.dumps(arguments)
        bounds = self.workers.bounds
        places = [[i for i, env in enumerate(called) if first <= env < stop] for first, stop in bounds]
        results: list[object] = [None] * len(called)
        given = [
            (function, [called[place] - first for place in some], pickled)
            for (first, _), some in zip(bounds, places, strict=True)
        ]
        for some, theirs in zip(places, cast(list[list[object]], self._call("call", given)), strict=True):
            for place, result in zip(some, theirs, strict=True):
                results[place] = result
        return results

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Pictures of all environments, if their render mode is "rgb_array"."""
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"The render mode is {self.render_mode}, but this method assumes it is `rgb_array` to obtain images."
            )
            return [None] * self.num_envs
        return self._call_envs(None, share.render)

    def has_attr(self, attr_name: str) -> bool:
        """Whether all environments have an attribute."""
        return all(self._call_envs(None, share.has_attr, attr_name))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the environments, or of what they wrap."""
        return self._call_envs(indices, share.get_attr, attr_name)

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environments' outermost wrappers."""
        self._call_envs(indices, share.set_attr, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: object, indices: VecEnvIndices = None, **method_kwargs: object
    ) -> list[Any]:
        """What a method of the environments returns."""
        return self._call_envs(indices, share.call_method, method_name, method_args, method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether the environments are wrapped in a class."""
        return self._call_envs(indices, is_wrapped, wrapper_class)
