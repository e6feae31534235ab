"""Checks of the arguments of constructors and of ``learn``: each raises an error that names the argument."""

import math
import numbers
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

Coefficient: TypeAlias = float | Schedule | str
"""A number, a callable of ``progress_remaining`` (1 at the start of training, 0 at its end), or "lin_0.01"."""

Bounds: TypeAlias = tuple[float, float]
"""The smallest and the largest value allowed; NaN is outside of all bounds."""

LARGEST = sys.float_info.max
FINITE: Bounds = (-LARGEST, LARGEST)
NOT_NEGATIVE: Bounds = (0.0, LARGEST)
NOT_NEGATIVE_OR_INFINITE: Bounds = (0.0, math.inf)
FRACTION: Bounds = (0.0, 1.0)


def plain(value: object) -> object:
    """
    What a NumPy scalar, or an array or tensor without dimensions, holds.

    :param value: any value
    :return: as a Python value; anything else as it is, also a tensor through which a gradient would have to flow
    """
    scalar = getattr(value, "ndim", None) == 0 and not getattr(value, "requires_grad", False)
    return value.item() if scalar and hasattr(value, "item") else value


def number(name: str, value: object, bounds: Bounds) -> float:
    """
    A real number within bounds.

    :param name: the argument's name, for the message
    :param value: of the argument
    :param bounds: smallest and largest value allowed
    :return: the value as a Python float
    :raises TypeError: if it is no real number
    :raises ValueError: if it is NaN or out of bounds
    """
    value = plain(value)
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    low, high = bounds
    if not low <= float(value) <= high:
        limits = [f"at least {low:g}"] if low > -LARGEST else []
        limits += [] if high == math.inf else ["finite"] if high == LARGEST else [f"at most {high:g}"]
        raise ValueError(f"{name} must be {' and '.join(limits) or 'a number'}, got {value!r}")
    return float(value)


def integer(name: str, value: object, *, minimum: int | None = 1) -> int:
    """
    A whole number not below a minimum.

    :param name: the argument's name, for the message
    :param value: of the argument
    :param minimum: smallest value allowed, None for no such
    :return: the value as a Python int
    :raises TypeError: if it is no integer
    :raises ValueError: if it is too small
    """
    value = plain(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return int(value)


def word(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """
    One of several words.

    :param name: the argument's name, for the message
    :param value: of the argument
    :param allowed: the words
    :return: the value
    :raises ValueError: if it is none of them
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return str(value)


def flag(name: str, value: object) -> bool:
    """
    True or False, which may be written as 1 or 0, or as None for False; not as a word, since "no" would mean True.

    :param name: the argument's name, for the message
    :param value: of the argument
    :return: the value as a Python bool
    :raises TypeError: if it is none of these
    """
    value = plain(value)
    if value is not None and not (isinstance(value, numbers.Real) and value in (0, 1)):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
    return bool(value)


def interval(name: str, value: object) -> tuple[float, float]:
    """
    Two numbers, the lower one first.

    :param name: the argument's name, for the message
    :param value: of the argument
    :return: the bounds as Python floats
    :raises TypeError: if it is no pair of numbers
    :raises ValueError: if the bounds are not in order
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair (lowest, highest), got {value!r}")
    low, high = (number(name, bound, (-math.inf, math.inf)) for bound in value)
    if not low < high:
        raise ValueError(f"{name} must be a pair (lowest, highest) with lowest < highest, got {value!r}")
    return low, high


def coefficient(name: str, value: object, bounds: Bounds) -> float | Callable[[float], float]:
    """
    A number or a schedule of one.

    A callable is not called here: it may count its calls, so that it is called when and as often as SB3 calls it.

    :param name: the argument's name, for the message
    :param value: a number, a callable of ``progress_remaining``, or the string "lin_X" (from X linearly to 0)
    :param bounds: smallest and largest value allowed
    :return: a float, or the schedule
    :raises TypeError: if it is none of these
    :raises ValueError: if the number is out of bounds
    """
    if isinstance(value, str):
        prefix, _, start = value.partition("_")
        try:
            first = float(start) if prefix == "lin" else None
        except ValueError:
            first = None
        if first is None:
            raise ValueError(
                f"{name} must be a number, a schedule, or 'lin_X' with a number X, such as 'lin_0.01', got {value!r}"
                + (", which is a number without its quotes" if _is_number(value) else "")
            )
        value = LinearSchedule(number(name, first, bounds), 0.0, 1.0)
    if not callable(value):
        return number(name, value, bounds)
    schedule: Callable[[float], float] = value
    return schedule


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def passed_on(options: Mapping[str, Any]) -> dict[str, int]:
    """
    Check what is passed on to SB3: numbers, flags and classes.

    :param options: the arguments
    :return: the numbers and flags as Python values
    :raises TypeError: if one is of the wrong type
    :raises ValueError: if a number makes no sense
    """
    checked: dict[str, int] = {
        "use_sde": flag("use_sde", options["use_sde"]),
        "verbose": integer("verbose", options["verbose"], minimum=None),
        "sde_sample_freq": integer("sde_sample_freq", options["sde_sample_freq"], minimum=None),
    }
    if options["stats_window_size"] is not None:  # None: over all episodes
        checked["stats_window_size"] = integer("stats_window_size", options["stats_window_size"], minimum=0)
    check_policy_kwargs(options.get("policy_kwargs"))
    buffer_class = options.get("rollout_buffer_class")
    if not (buffer_class is None or callable(buffer_class)):
        raise TypeError(f"rollout_buffer_class must be a class of rollout buffers, got {buffer_class!r}")
    if options["seed"] is not None:
        checked["seed"] = integer("seed", options["seed"], minimum=0)
    return checked


CLASSES = {
    "activation_fn": "torch.nn.ReLU",
    "optimizer_class": "torch.optim.Adam",
    "features_extractor_class": "stable_baselines3.common.torch_layers.FlattenExtractor",
}
"""Arguments of policies that are classes, each with an example."""


def check_policy_kwargs(policy_kwargs: object) -> None:
    """
    Look for what a policy would stumble over without naming it.

    :param policy_kwargs: the arguments of a policy, None for none
    :raises TypeError: if they are no dict, or the name of a class stands where a class should
    """
    if policy_kwargs is None:
        return
    if not isinstance(policy_kwargs, Mapping):
        raise TypeError(f"policy_kwargs must be a dict with arguments of the policy, got {policy_kwargs!r}")
    for name, example in CLASSES.items():
        if isinstance(given := policy_kwargs.get(name), str):
            raise TypeError(f"policy_kwargs: {name} must be a class such as {example}, got {given!r}")
    if isinstance(net_arch := policy_kwargs.get("net_arch"), str):
        raise TypeError(
            f"policy_kwargs: net_arch must be a list such as [64, 64], or dict(pi=[64], vf=[64]), got {net_arch!r}"
        )


def check_env(env: object) -> None:
    """
    Look whether something is an environment.

    :param env: what was given in place of one
    :raises TypeError: if it is none, or vectorized by another library than SB3
    """
    if isinstance(env, (gym.Env, VecEnv)):
        return
    if isinstance(env, gym.vector.VectorEnv):
        raise TypeError(
            f"env: {type(env).__name__} is a vector environment of Gymnasium; wrap it by "
            "sb3_policyopt.envs.tensors.from_gymnasium_vector, or make it by stable_baselines3.common.env_util.make_vec_env"
        )
    if not (hasattr(env, "reset") and hasattr(env, "step")):  # one of OpenAI Gym has both, and SB3 converts it
        raise TypeError(
            f"env must be an environment or a VecEnv (for a new model also the name of an environment), got {env!r}; "
            "make_vec_env of stable_baselines3.common.env_util makes a VecEnv of a name or a function"
        )


def check_learning(env: object, total_timesteps: object, callback: object, log_interval: object) -> None:
    """
    Check what a training needs, before it starts.

    :param env: the environments of the model
    :param total_timesteps: any number, which may be infinite
    :param callback: as SB3 takes it
    :param log_interval: iterations between two logs, None for no logs
    :raises TypeError: if one is of the wrong type
    :raises ValueError: if there is no environment, or a number makes no sense
    """
    if env is None:
        raise ValueError("env: the model has none; give it one by load(path, env=env) or set_env(env) before learn()")
    number("total_timesteps", total_timesteps, (-math.inf, math.inf))
    if log_interval is not None:
        integer("log_interval", log_interval)
    if not (callback is None or isinstance(callback, (list, BaseCallback)) or callable(callback)):
        raise TypeError(f"callback must be a callback of SB3, a list of them or a function, got {callback!r}")


def check_batches(n_steps: int, n_envs: int, batch_size: int, normalize_advantage: bool) -> None:
    """
    Refuse a rollout of one transition if advantages are normalised; warn of truncated minibatches, as SB3 does.

    :param n_steps: steps of each environment
    :param n_envs: number of environments
    :param batch_size: transitions per minibatch
    :param normalize_advantage: whether advantages are normalised
    :raises ValueError: if there would be nothing to normalise
    """
    size = n_steps * n_envs
    if normalize_advantage and size == 1:
        raise ValueError(
            f"n_steps * n_envs must be greater than 1 to normalize advantages, got n_steps={n_steps} and n_envs={n_envs}; "
            "raise n_steps or pass normalize_advantage=False"
        )
    if size % batch_size:
        warnings.warn(
            f"You have specified a mini-batch size of {batch_size}, but because the `RolloutBuffer` is of size "
            f"`n_steps * n_envs = {size}`, after every {size // batch_size} untruncated mini-batches, there will "
            f"be a truncated mini-batch of size {size % batch_size}\n"
            "We recommend using a `batch_size` that is a factor of `n_steps * n_envs`.\n"
            f"Info: (n_steps={n_steps} and n_envs={n_envs})",
            stacklevel=level_of_user(),
        )


def level_of_user() -> int:
    """
    How far up the calls the first one of other code is.

    :return: ``stacklevel`` for a warning of the caller about that code
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("sb3_policyopt."):
        frame, level = frame.f_back, level + 1
    return level
