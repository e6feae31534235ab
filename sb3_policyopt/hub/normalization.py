"""``VecNormalize`` statistics as plain arrays, in addition to the pickle that other tools read, and their environment."""

import json
from pathlib import Path
from typing import cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_shape_equal
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from sb3_policyopt.saving.plain_json import decode, encode

_SETTINGS = ("norm_obs", "norm_reward", "norm_obs_keys", "clip_obs", "clip_reward", "gamma", "epsilon", "training")


def save_statistics(vec_normalize: VecNormalize, path: "str | Path") -> None:
    """
    Write the statistics of a ``VecNormalize`` as a ``.npz`` without pickles.

    :param vec_normalize: the wrapper; it need not be attached to an environment
    :param path: the file to write
    """
    settings = {name: getattr(vec_normalize, name) for name in _SETTINGS}
    settings |= {"observation_space": vec_normalize.observation_space, "action_space": vec_normalize.action_space}
    moments = {"returns": vec_normalize.ret_rms} | _observation_moments(vec_normalize)
    arrays = {
        f"{name}/{field}": np.asarray(getattr(moment, field)) for name, moment in moments.items() for field in vars(moment)
    }
    arrays["settings"] = np.array(json.dumps(encode(settings)))
    np.savez(path, allow_pickle=False, **arrays)


def load_statistics(path: "str | Path") -> VecNormalize:
    """
    Read what :func:`save_statistics` wrote. Nothing is unpickled.

    :param path: the ``.npz``
    :return: the wrapper, attached to no environment: ``normalize_obs()`` works, ``set_venv(venv)`` attaches it
    :raises ValueError: if the file is damaged
    """
    detached = VecNormalize.__new__(VecNormalize)
    detached.__setstate__(_load_attached(path).__getstate__())
    return detached


def statistics_to_pickle(path: "str | Path", target: "str | Path") -> None:
    """
    Convert the plain statistics to the pickle that rl-zoo3 reads.

    :param path: the ``.npz``
    :param target: the ``.pkl`` to write
    :raises ValueError: if the file is damaged
    """
    _load_attached(path).save(str(target))


def freeze(statistics: VecNormalize) -> VecNormalize:
    """
    Set what an evaluation needs: the statistics do not change, and rewards are the environment's own.

    ``evaluate_policy`` sums the rewards that it gets where an environment has no ``Monitor``, so they must not be normalised.

    :param statistics: the wrapper, which is changed
    :return: the wrapper
    """
    statistics.training = False
    statistics.norm_reward = False
    return statistics


def attached(statistics: VecNormalize, env: GymEnv, observation_space: "spaces.Space[object]") -> VecEnv:
    """
    Wrap an environment in the statistics of an agent, and in its frame stack if it was trained with one.

    :param statistics: attached to no environment
    :param env: as it was before normalisation, or with the frame stack around it
    :param observation_space: of the agent
    :return: the environment for the agent
    :raises ValueError: if it has a ``VecNormalize`` already, or its observations another shape than those of the training
    """
    given = layer = BaseAlgorithm._wrap_env(env, verbose=0)
    if unwrap_vec_normalize(given) is not None:
        raise ValueError(
            "env has a VecNormalize, and the agent brings its own, so that observations would be normalised twice: pass the "
            "environment of the training without VecNormalize and VecFrameStack around it"
        )
    while not _same_shape(layer.observation_space, statistics.observation_space):
        if not isinstance(layer, (VecFrameStack, VecTransposeImage)):
            raise ValueError(
                f"env has the observations {given.observation_space}, and the agent was normalised on "
                f"{statistics.observation_space}: pass the environment of the training without VecNormalize and VecFrameStack "
                "around it"
            )
        layer = layer.venv
    statistics.set_venv(layer)
    n_stack = spaces.flatdim(observation_space) // spaces.flatdim(statistics.observation_space)
    return VecFrameStack(statistics, n_stack) if n_stack > 1 else statistics


def _same_shape(one: "spaces.Space[object]", other: "spaces.Space[object]") -> bool:
    try:
        check_shape_equal(one, other)
    except AssertionError:
        return False
    return True


def _load_attached(path: "str | Path") -> VecNormalize:
    """The wrapper, around an environment that has only spaces."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        settings = decode(json.loads(str(arrays.pop("settings"))))
        venv = DummyVecEnv([lambda: _NoEnv(settings["observation_space"], settings["action_space"])])
        attached = VecNormalize(venv, **{name: settings[name] for name in _SETTINGS})
        for name, moment in ({"returns": attached.ret_rms} | _observation_moments(attached)).items():
            _fill(moment, {field: arrays[f"{name}/{field}"] for field in vars(moment)})
    except (KeyError, TypeError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} does not hold the statistics of a VecNormalize: {error}") from error
    return attached


class _NoEnv(gym.Env[object, object]):
    """Spaces without an environment."""

    def __init__(self, observation_space: "spaces.Space[object]", action_space: "spaces.Space[object]") -> None:
        self.observation_space, self.action_space = observation_space, action_space


def _observation_moments(vec_normalize: VecNormalize) -> dict[str, RunningMeanStd]:
    if not vec_normalize.norm_obs:
        return {}
    moments = cast("RunningMeanStd | dict[str, RunningMeanStd]", vec_normalize.obs_rms)
    if isinstance(moments, dict):
        return {f"observations.{key}": moment for key, moment in moments.items()}
    return {"observations": moments}


def _fill(moment: RunningMeanStd, values: "dict[str, np.ndarray]") -> None:
    for field, value in values.items():
        if value.shape != np.shape(getattr(moment, field)):
            raise TypeError(f"{field} has shape {value.shape}")
        setattr(moment, field, value if value.ndim else value[()])
