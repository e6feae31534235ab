"""
EnvPool (https://github.com/sail-sg/envpool) as an SB3 ``VecEnv``: environments in C++ threads, semantics of ``DummyVecEnv``.

EnvPool resets a finished environment at the *next* step and ignores that step's action, which would add a transition to the
rollout that never happened. Here finished environments are reset at once, by their ids, so that the observation returned with
``done`` is the first of the new episode and the last one of the old is ``info["terminal_observation"]``, as everywhere in SB3.
"""

import importlib
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_policyopt.envs.envpool_types import Observations, Pool, PoolSpec, import_envpool

# Families whose dynamics and rewards do not depend on `max_episode_steps`, so that the time limit can be kept here. EnvPool
# calls every episode truncated that ends at the limit, even if it fell over just then: its value would be bootstrapped.
_TIME_LIMIT_KEPT_HERE = ("envpool.classic_control", "envpool.toy_text", "envpool.box2d", "envpool.mujoco.gym")
_ATARI = "envpool.atari"
_LARGEST_INT32 = 2**31 - 1


def _same_kind(space: spaces.Space[object], other: spaces.Space[object]) -> bool:
    """Whether two spaces hold the same arrays, bounds and floating-point precision aside."""
    return type(space) is type(other) and space.shape == other.shape and getattr(space, "n", 0) == getattr(other, "n", 0)


def _spaces(env_id: str, spec: PoolSpec) -> tuple[spaces.Space[object], spaces.Space[object]]:
    """
    The spaces of the environment of that name in Gymnasium where it has the same arrays, else EnvPool's.

    EnvPool's bounds and precision sometimes differ from Gymnasium's, and SB3 compares spaces when it loads a model: with
    Gymnasium's, a model can be used with both. A number among the observations (a Box of shape ()) has shape (1,) here, as
    SB3's networks need it.

    :param env_id: EnvPool's id
    :param spec: EnvPool's specification of it
    :return: observation space and action space of one environment
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observations, actions = spec.gymnasium_observation_space, spec.gymnasium_action_space
        try:
            env = gym.make(env_id)
        except (gym.error.Error, ImportError):
            return _with_axes(observations), actions
    theirs = (env.observation_space, env.action_space)
    env.close()
    if _same_kind(observations, theirs[0]) and _same_kind(actions, theirs[1]):
        observations, actions = theirs
    return _with_axes(observations), actions


def _with_axes(space: spaces.Space[Any]) -> spaces.Space[object]:
    """
    A space whose Boxes have an axis.

    :param space: of observations
    :return: the same one, or a copy in which a Box of shape () has shape (1,)
    """
    if isinstance(space, spaces.Dict) and any(part.shape == () for part in space.values()):
        return spaces.Dict({key: _with_axes(part) for key, part in space.items()})
    if isinstance(space, spaces.Box) and space.shape == ():
        kind: Any = space.dtype
        return spaces.Box(space.low.reshape(1), space.high.reshape(1), dtype=kind)
    return space


class EnvPoolVecEnv(VecEnv):
    """
    EnvPool's environments as an SB3 ``VecEnv``; see ``make_envpool``.

    ``info`` has ``TimeLimit.truncated`` at every step; at the last step of an episode also ``terminal_observation``,
    ``episode`` (as from ``Monitor``) and all values that EnvPool reports.

    :param env_id: an id of ``envpool.list_all_envs()``
    :param num_envs: number of environments
    :param monitor_file: where to write the statistics of every episode, in the format of ``Monitor``
    :param info_keywords: values of the last ``info`` to add to the statistics of an episode
    :param frames_per_step: unit of the episode length in the statistics: lengths are reported in steps times this
    :param settings: passed to ``envpool.make``: ``num_threads`` (default: one per core), ``max_episode_steps``, the task's own
    :raises ValueError: if EnvPool has no such environment or setting, or the environment has several players
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        monitor_file: str | None = None,
        info_keywords: tuple[str, ...] = (),
        frames_per_step: int = 1,
        **settings: Any,
    ) -> None:
        envpool = import_envpool()
        if num_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {num_envs}")
        registered = importlib.import_module("envpool.registration").registry.specs
        if env_id not in registered:
            raise ValueError(f"EnvPool has no environment {env_id!r}: see envpool.list_all_envs()")
        self.env_id = env_id
        family = registered[env_id][0]
        self._is_atari = family == _ATARI
        self._info_keywords = info_keywords
        self._frames_per_step = frames_per_step
        self._settings = {**settings, "num_envs": num_envs, "env_type": "gymnasium"}
        specification = {key: value for key, value in settings.items() if key != "render_mode"}
        try:
            spec: PoolSpec = envpool.make_spec(env_id, num_envs=num_envs, **specification)
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"EnvPool does not accept these settings for {env_id!r}: {error}") from error
        if spec.config.max_num_players > 1:
            raise ValueError(f"{env_id!r} has several players, which SB3's VecEnv cannot express")
        self._ends_with_life = self._is_atari and bool(spec.config.episodic_life)
        self._lives = np.zeros(num_envs, dtype=np.int32)
        self._limit: int = min(spec.config.max_episode_steps, _LARGEST_INT32 - 1)
        self._keeps_time_limit = family in _TIME_LIMIT_KEPT_HERE
        if self._keeps_time_limit:
            self._settings["max_episode_steps"] = self._limit + 1
        self._render_mode: str | None = settings.get("render_mode")
        self._pool: Pool | None = None
        self._closed = False
        self._waiting = False
        self._episode_returns = np.zeros(num_envs)
        self._episode_lengths = np.zeros(num_envs, dtype=np.int64)
        super().__init__(num_envs, *_spaces(env_id, spec))
        self._start = time.time()
        self._writer = self._results_writer(monitor_file)

    def _results_writer(self, monitor_file: str | None) -> ResultsWriter | None:
        if monitor_file is None:
            return None
        header: dict[str, float | str] = {"t_start": self._start, "env_id": self.env_id}
        return ResultsWriter(monitor_file, header=header, extra_keys=self._info_keywords)

    # ------------------------------------------------------------------ reset and step

    def reset(self) -> VecEnvObs:
        """
        Reset all environments; those seeds set by ``seed`` are used now, once.

        :return: first observations, ``(num_envs, ...)``
        """
        self._check_not_closed()
        if self._waiting:
            self._opened().recv()
            self._waiting = False
        seeds = [seed for seed in self._seeds if seed is not None]
        if seeds or self._pool is None:
            # EnvPool takes seeds only when it is made, of 31 bits; without one it would always start from the same.
            entropy = np.random.SeedSequence().generate_state(self.num_envs)
            seeds = [int(seed) % _LARGEST_INT32 for seed in (seeds or entropy)]
            self._pool = self._new_pool(seeds)
        self._reset_seeds()
        self._episode_returns[:] = 0.0
        self._episode_lengths[:] = 0
        obs, info = self._opened().reset()
        self.reset_infos = [self._env_info(info, env) for env in range(self.num_envs)]
        return self._as_sb3(obs, self.observation_space)

    def _opened(self) -> Pool:
        """EnvPool's environments, which the first reset makes."""
        self._check_not_closed()
        if self._pool is None:
            raise RuntimeError("call reset() before step()")
        return self._pool

    def _check_not_closed(self) -> None:
        if self._closed:
            raise RuntimeError("this EnvPool is closed: make a new one")

    def _new_pool(self, seeds: list[int]) -> Pool:
        with warnings.catch_warnings():
            # Its own spaces, which only `recv` uses, warn of their precision when they are first used.
            warnings.simplefilter("ignore")
            pool: Pool = import_envpool().make(self.env_id, seed=seeds, **self._settings)
            _ = pool.observation_space
        return pool

    def step_async(self, actions: np.ndarray) -> None:
        """
        Let the threads begin a step.

        :param actions: ``(num_envs, ...)``
        """
        pool = self._opened()
        if self._waiting:
            raise RuntimeError("step_async() was called twice without step_wait()")
        self._actions = np.asarray(actions).reshape(self.num_envs, *(self.action_space.shape or ()))
        pool.send(self._actions)
        self._waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """
        Wait for the threads, and reset those environments that have finished.

        :return: observations ``(num_envs, ...)``, rewards and dones ``(num_envs,)``, one info per environment
        """
        raw, rewards, terminated, truncated, info = self._opened().recv()
        self._waiting = False
        obs = self._as_sb3(raw, self.observation_space)
        self._episode_lengths += 1
        if self._keeps_time_limit:
            truncated = truncated | (self._episode_lengths >= self._limit)
        elif self._is_atari:
            lives = info["lives"]
            life_lost_at_limit = truncated & self._ends_with_life & (lives > 0) & (lives < self._lives)
            terminated = terminated | (info["terminated"] > 0) | life_lost_at_limit
            self._lives = lives.copy()
        dones = terminated | truncated
        # As Monitor inside of AtariWrapper: unclipped rewards, and a game instead of a life.
        self._episode_returns += info["reward"] if self._is_atari else rewards
        infos: list[dict[str, object]] = [{"TimeLimit.truncated": only} for only in (truncated & ~terminated).tolist()]
        finished = np.flatnonzero(dones)
        if len(finished) > 0:
            episode_over = truncated | (info["terminated"] > 0) if self._is_atari else dones
            for env in finished.tolist():
                infos[env].update(self._env_info(info, env), terminal_observation=self._observation_of(obs, env))
                if episode_over[env]:
                    infos[env]["episode"] = self._episode_statistics(env, infos[env])
            self._reset_finished(obs, finished)
        return obs, rewards, dones, infos

    def _reset_finished(self, obs: Observations, finished: np.ndarray) -> None:
        """
        Reset some environments and put their first observations into ``obs``.

        :param obs: observations of all environments, changed in place
        :param finished: ids of the environments
        """
        ids = finished.astype(np.int32)
        if self._keeps_time_limit:
            raw, info = self._opened().reset(ids)
        else:
            # EnvPool has registered the end, and resets at the next step, whose action it ignores. `reset` would begin a new
            # game of Atari where only a life was lost.
            raw, _, _, _, info = self._opened().step(self._actions[finished], ids)
        first = self._as_sb3(raw, self.observation_space)
        for row, env in enumerate(finished.tolist()):
            self.reset_infos[env] = self._env_info(info, row)
        if isinstance(obs, dict):
            for key, values in obs.items():
                values[finished] = cast(Mapping[str, np.ndarray], first)[key]
        else:
            obs[finished] = first

    def _episode_statistics(self, env: int, info: Mapping[str, object]) -> dict[str, object]:
        """
        What ``Monitor`` reports of an episode; the counts of the next start at 0.

        :param env: index of the environment
        :param info: its info at the last step
        :return: return ``r``, length ``l``, seconds since the beginning ``t``, and the values named by ``info_keywords``
        """
        length = int(self._episode_lengths[env]) * self._frames_per_step
        statistics: dict[str, Any] = {
            "r": round(float(self._episode_returns[env]), 6),
            "l": length,
            "t": round(time.time() - self._start, 6),
        }
        statistics.update({key: info[key] for key in self._info_keywords})
        if self._writer is not None:
            self._writer.write_row(statistics)
        self._episode_returns[env] = 0.0
        self._episode_lengths[env] = 0
        return statistics

    @staticmethod
    def _as_sb3(obs: Observations, space: spaces.Space[object]) -> Observations:
        """EnvPool's arrays in the shape and type of the space; they are new at every step, so they may be changed in place."""
        if isinstance(space, spaces.Dict):
            parts = cast(Mapping[str, np.ndarray], obs)
            return {key: EnvPoolVecEnv._array_as_sb3(parts[key], subspace) for key, subspace in space.items()}
        return EnvPoolVecEnv._array_as_sb3(cast(np.ndarray, obs), space)

    @staticmethod
    def _array_as_sb3(obs: np.ndarray, space: spaces.Space[object]) -> np.ndarray:
        return obs.reshape(len(obs), *(space.shape or ())).astype(space.dtype, copy=False)

    @staticmethod
    def _observation_of(obs: Observations, env: int) -> Observations:
        if isinstance(obs, dict):
            return {key: values[env].copy() for key, values in obs.items()}
        return obs[env].copy()

    @staticmethod
    def _env_info(info: Mapping[str, object], row: int) -> dict[str, object]:
        """EnvPool's infos are arrays over environments; this is one environment's."""
        arrays = {key: value for key, value in info.items() if isinstance(value, np.ndarray) and key != "env_id"}
        return {key: value[row].item() if value.ndim == 1 else value[row].copy() for key, value in arrays.items()}

    # ------------------------------------------------------------------ the rest of VecEnv

    def close(self) -> None:
        """End the threads and close the file of statistics."""
        if self._waiting:
            self._opened().recv()
            self._waiting = False
        self._pool = None
        self._closed = True
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def set_options(self, options: list[dict[str, object]] | dict[str, object] | None = None) -> None:
        """
        EnvPool's ``reset`` takes no options.

        :param options: must be empty
        :raises ValueError: if not
        """
        if options and (isinstance(options, dict) or any(options)):
            raise ValueError("EnvPool takes no options at reset: pass settings of the task to make_envpool instead")

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        Pictures of all environments, if made with ``render_mode="rgb_array"``.

        :return: one ``(height, width, 3)`` image per environment
        """
        if self._render_mode != "rgb_array":
            raise ValueError("get_images() needs make_envpool(..., render_mode='rgb_array')")
        if self._pool is None:
            raise RuntimeError("call reset() before rendering")
        return list(self._pool.render(np.arange(self.num_envs, dtype=np.int32)))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        The few attributes that EnvPool's environments share.

        :param attr_name: ``render_mode``, ``observation_space``, ``action_space`` or ``metadata``
        :param indices: which environments; all by default
        :return: the value for each of them
        :raises AttributeError: for any other attribute
        """
        if attr_name not in ("render_mode", "observation_space", "action_space", "metadata"):
            raise AttributeError(f"EnvPool's environments are C++ objects and have no Python attribute {attr_name!r}")
        # SB3's constructor reads the render mode before it sets it.
        value = self._render_mode if attr_name == "render_mode" else getattr(self, attr_name)
        return [value] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: object, indices: VecEnvIndices = None) -> None:
        """:raises AttributeError: always; settings are given to ``make_envpool``."""
        raise AttributeError(
            f"EnvPool's environments are C++ objects: {attr_name!r} cannot be set; give settings to make_envpool"
        )

    def env_method(
        self, method_name: str, *method_args: object, indices: VecEnvIndices = None, **method_kwargs: object
    ) -> list[Any]:
        """:raises AttributeError: always; there are no Python environments whose method could be called."""
        raise AttributeError(f"EnvPool's environments are C++ objects and have no method {method_name!r}")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: a Gymnasium wrapper
        :param indices: which environments; all by default
        :return: True for what this class does itself: ``Monitor`` and ``TimeLimit``
        """
        return [wrapper_class in (Monitor, gym.wrappers.TimeLimit)] * len(list(self._get_indices(indices)))


def make_envpool(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    *,
    monitor_file: str | None = None,
    info_keywords: tuple[str, ...] = (),
    **settings: Any,
) -> EnvPoolVecEnv:
    """
    ``make_vec_env`` for EnvPool: many environments in the threads of one process.

        model = PPO("MlpPolicy", make_envpool("HalfCheetah-v5", n_envs=64, seed=0))

    :param env_id: an id of ``envpool.list_all_envs()``, mostly the same as Gymnasium's; Atari is ``Pong-v5`` and so on
    :param n_envs: number of environments
    :param seed: seed of the first environment, counted up for the others; from the operating system by default
    :param monitor_file: where to write the statistics of every episode, in the format of ``Monitor``
    :param info_keywords: values of the last ``info`` to add to the statistics of an episode
    :param settings: passed to ``envpool.make``: ``num_threads`` (default: one per core), ``max_episode_steps``, the task's own
    :return: the environments, with episode statistics; they need no ``VecMonitor``
    :raises ImportError: if EnvPool is not installed
    :raises ValueError: if EnvPool has no such environment or setting, or the environment has several players
    """
    env = EnvPoolVecEnv(env_id, n_envs, monitor_file=monitor_file, info_keywords=info_keywords, **settings)
    if seed is not None:
        env.seed(seed)
        env.action_space.seed(seed)
    return env
