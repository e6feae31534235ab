"""The wrappers of a script's environment as rl-zoo3's configuration names them, so that the evaluation makes them again."""

import math
from collections.abc import Mapping

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)

from sb3_policyopt.hub.environments import spec_of

# Wrappers of a VecEnv that are made again for the evaluation, or that change nothing in it.
_REPRODUCED = (VecNormalize, VecFrameStack, VecTransposeImage, VecMonitor, VecCheckNan, VecVideoRecorder)
# Wrappers of one environment that change neither observations, actions, rewards nor the end of episodes.
_OBSERVERS = ("Monitor", "RecordVideo", "RecordEpisodeStatistics", "PassiveEnvChecker", "OrderEnforcing", "RenderCollection")
_DEFAULTS = {"clip_obs": 10.0, "clip_reward": 10.0, "epsilon": 1e-8}
_GAMMA = 0.99  # of a VecNormalize, and of every algorithm here


def wrappers_of(env: VecEnv) -> list[dict[str, dict[str, object]]]:
    """
    Read the wrappers of one environment in rl-zoo3's form; all others are checked.

    :param env: of a script
    :return: by dotted name, with their arguments, innermost first
    :raises ValueError: for a wrapper that cannot be made again
    """
    layer, normalized = env, False
    while isinstance(layer, VecEnvWrapper):
        if not isinstance(layer, _REPRODUCED):
            raise _unknown(type(layer).__name__)
        if isinstance(layer, VecFrameStack) and normalized:
            raise ValueError(
                "the environment has VecNormalize around VecFrameStack; rl-zoo3's order, in which it is made again, is the "
                "reverse: train with VecFrameStack(VecNormalize(env), n)"
            )
        normalized = normalized or isinstance(layer, VecNormalize)
        layer = layer.venv
    spec = spec_of(env)
    if spec is None:  # an environment made without gym.make
        return []
    changing = [one for one in spec.additional_wrappers if one.entry_point.rpartition(":")[2] not in _OBSERVERS]
    for one in changing:
        if one.kwargs is None or not is_plain(list(one.kwargs.values())):
            raise _unknown(one.entry_point.rpartition(":")[2])
    arguments = [{name: plain(value) for name, value in (one.kwargs or {}).items()} for one in changing]
    return [{one.entry_point.replace(":", "."): given} for one, given in zip(changing, arguments, strict=True)]


def normalization_of(vec_normalize: VecNormalize, config: Mapping[str, object]) -> dict[str, object]:
    """
    Describe a ``VecNormalize`` as rl-zoo3's entry ``normalize``.

    :param vec_normalize: it
    :param config: the hyperparameters beside it; rl-zoo3 gives the ``VecNormalize`` their ``gamma``
    :return: its arguments, the rarer ones only where they differ from their defaults
    """
    rarer = {name: getattr(vec_normalize, name) for name, default in _DEFAULTS.items()}
    changed = {name: value for name, value in rarer.items() if not math.isclose(value, _DEFAULTS[name])}
    gamma = config.get("gamma", _GAMMA)
    if vec_normalize.norm_reward and vec_normalize.gamma != gamma:
        changed["gamma"] = vec_normalize.gamma
    keys, space = vec_normalize.norm_obs_keys, vec_normalize.observation_space
    if vec_normalize.norm_obs and keys is not None and isinstance(space, spaces.Dict) and set(keys) != set(space.spaces):
        changed["norm_obs_keys"] = list(keys)
    return {"norm_obs": vec_normalize.norm_obs, "norm_reward": vec_normalize.norm_reward, **changed}


def replaced_gamma(config: Mapping[str, object]) -> object:
    """
    Find the ``gamma`` of a ``VecNormalize`` that rl-zoo3 replaces by that of the algorithm.

    :param config: hyperparameters in rl-zoo3's form
    :return: it; None if nothing is replaced by another number
    """
    normalize = config.get("normalize")
    own = normalize.get("gamma") if isinstance(normalize, Mapping) else None
    return own if "gamma" in config and own != config["gamma"] else None


def is_plain(value: object) -> bool:
    """Whether a value is a number (NumPy's, too), a string, a Boolean or None, or a list or tuple of such."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, np.number, np.bool_))


def plain(value: object) -> object:
    """A value with Python's numbers in place of NumPy's, and lists in place of tuples, for YAML and for the code on a card."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def is_same(one: object, other: object) -> bool:
    """
    Whether two arguments of an environment are equal, of which arrays may be a part.

    :param one: an argument
    :param other: another
    :return: False also for an array and a list of its numbers, and for what cannot be compared
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and np.array_equal(one, other)  # type: ignore[arg-type]
    try:
        return bool(one == other)
    except (ValueError, RuntimeError):  # as of a tensor, which is compared element by element
        return False


def plain_arguments(env_kwargs: Mapping[str, object]) -> dict[str, object]:
    """
    Write the arguments of an environment with Python's numbers in place of NumPy's.

    :param env_kwargs: by name
    :return: what YAML can hold
    :raises ValueError: if one of them is no number, string, list or dictionary
    """
    return {name: _plain_argument(name, value) for name, value in env_kwargs.items()}


def _plain_argument(name: str, value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain_argument(name, item) for key, item in value.items()}
    if type(value) in (list, tuple) and isinstance(value, (list, tuple)):
        return type(value)(_plain_argument(name, item) for item in value)
    if not is_plain(value):
        raise ValueError(
            f"env_kwargs has {value!r} for {name}, and only numbers, strings, lists and dictionaries can be published: make "
            "the environment with such arguments, or register one that needs none"
        )
    return plain(value)


def _unknown(wrapper: str) -> ValueError:
    return ValueError(
        f"the environment has the wrapper {wrapper}, whose arguments are not known, so it cannot be made again: "
        "use push_to_hub with env_wrapper or vec_env_wrapper in config="
    )
