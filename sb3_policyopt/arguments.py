"""Checks of constructor arguments: each refuses nonsense with a sentence that names the argument."""

import math
import numbers
from collections.abc import Callable
from typing import Any, TypeAlias

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

Coefficient: TypeAlias = float | Schedule | str
"""A number, a callable of ``progress_remaining`` (1 at the start of training, 0 at its end), or "lin_0.01"."""


def number(
    name: str,
    value: Any,
    *,
    minimum: float = 0.0,
    maximum: float = math.inf,
    exclusive: bool = False,
    infinite: bool = False,
) -> float:
    """
    A real number within bounds.

    :param name: the argument's name, for the message
    :param value: what the user passed
    :param minimum: smallest value allowed
    :param maximum: largest value allowed
    :param exclusive: True if the bounds themselves are not allowed
    :param infinite: True if infinity is allowed
    :return: the value as a Python float
    :raises TypeError: if it is no real number
    :raises ValueError: if it is NaN or out of bounds
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    result = float(value)
    if infinite and result == math.inf:
        return result
    inside = minimum < result < maximum if exclusive else minimum <= result <= maximum
    if not inside or math.isinf(result):
        bounds = f"{'greater than' if exclusive else 'at least'} {minimum:g}"
        if math.isfinite(maximum):
            bounds += f" and {'less than' if exclusive else 'at most'} {maximum:g}"
        elif not infinite:
            bounds += " and finite"
        raise ValueError(f"{name} must be {bounds}, got {value!r}")
    return result


def integer(name: str, value: Any, *, minimum: int = 1) -> int:
    """
    A whole number not below a minimum.

    :param name: the argument's name, for the message
    :param value: what the user passed
    :param minimum: smallest value allowed
    :return: the value as a Python int
    :raises TypeError: if it is no integer
    :raises ValueError: if it is too small
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return int(value)


def word(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """
    One of a few words.

    :param name: the argument's name, for the message
    :param value: what the user passed
    :param allowed: the words
    :return: the value
    :raises ValueError: if it is none of them
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return str(value)


def flag(name: str, value: Any) -> bool:
    """
    True or False.

    :param name: the argument's name, for the message
    :param value: what the user passed
    :return: the value
    :raises TypeError: if it is not a bool
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
    return value


def interval(name: str, value: Any) -> tuple[float, float]:
    """
    Two numbers, the lower one first.

    :param name: the argument's name, for the message
    :param value: what the user passed
    :return: the bounds as Python floats
    :raises TypeError: if it is no pair of numbers
    :raises ValueError: if the bounds are not in order
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair (lowest, highest), got {value!r}")
    low, high = (number(name, bound, minimum=-math.inf, infinite=True) for bound in value)
    if not low < high:
        raise ValueError(f"{name} must be a pair (lowest, highest) with lowest < highest, got {value!r}")
    return low, high


def coefficient(name: str, value: Any, *, exclusive: bool = False, infinite: bool = False) -> float | Callable[[float], float]:
    """
    A non-negative number or a schedule of one.

    :param name: the argument's name, for the message
    :param value: a number, a callable of ``progress_remaining``, or the string "lin_X" (from X linearly to 0)
    :param exclusive: True if the number 0 is not allowed (a schedule may end at 0 all the same)
    :param infinite: True if infinity is allowed
    :return: a float, or the schedule
    :raises TypeError: if it is none of these
    :raises ValueError: if the number, or what the schedule gives at the start of training, is out of bounds
    """
    if isinstance(value, str):
        prefix, _, start = value.partition("_")
        try:
            value = LinearSchedule(float(start), 0.0, 1.0)
        except ValueError:
            value = None
        if prefix != "lin" or value is None:
            raise ValueError(f"{name}: the only schedule with a name is 'lin_X' with a number X, such as 'lin_0.01'")
    if not callable(value):
        return number(name, value, exclusive=exclusive, infinite=infinite)
    number(
        f"{name} (its schedule at the start of training)", FloatSchedule(value)(1.0), exclusive=exclusive, infinite=infinite
    )
    schedule: Callable[[float], float] = value
    return schedule
