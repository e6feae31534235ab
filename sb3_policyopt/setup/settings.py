"""Arguments that are no coefficients: checked when they are given, and again where they may have been assigned or loaded."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, TypeAlias

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_policyopt.setup import arguments

Check: TypeAlias = Callable[[str, Any], Any]
"""The name of an argument and its value ↦ the value as it is kept; raises an error that names the argument."""


def integer_from(minimum: int | None) -> Check:
    """
    The check of a whole number.

    :param minimum: smallest value allowed, None for no such
    :return: the check
    """
    return partial(arguments.integer, minimum=minimum)


def one_of(*words: str) -> Check:
    """
    The check of a word.

    :param words: those allowed
    :return: the check
    """
    return lambda name, value: arguments.word(name, value, words)


def fraction(name: str, value: object) -> float:
    """The check of a number in [0, 1]."""
    return arguments.number(name, value, arguments.FRACTION)


def optional(check: Check) -> Check:
    """
    The check of what may be None.

    :param check: of all other values
    :return: the check
    """
    return lambda name, value: None if value is None else check(name, value)


class Checked(OnPolicyAlgorithm):
    """An algorithm that checks its settings: those that PPO and TRPO share, and its own."""

    settings: ClassVar[Mapping[str, Check]] = {
        "batch_size": integer_from(1),
        "normalize_advantage": arguments.flag,
        "value_target": one_of("td_lambda", "td_zero", "monte_carlo"),
        "engine": one_of("auto", "closed_form", "hybrid", "autograd"),
        "micro_batch_size": optional(integer_from(1)),
        "log_std_bounds": optional(arguments.interval),
        "check_observations": arguments.flag,
        "sequence_length": optional(integer_from(1)),
        "n_steps": integer_from(1),
        "gamma": fraction,
        "gae_lambda": fraction,
        "seed": optional(integer_from(0)),
    }
    """The check of each setting, by name."""
    batch_size: int
    normalize_advantage: bool
    value_target: Any
    engine: str
    micro_batch_size: int | None
    log_std_bounds: tuple[float, float] | None
    check_observations: bool
    sequence_length: int | None

    def _take_settings(self, **given: object) -> None:
        """
        Check settings, and keep them.

        :param given: by name
        :raises TypeError: if one is of the wrong type
        :raises ValueError: if one makes no sense
        """
        for name, value in given.items():
            setattr(self, name, self.settings[name](name, value))

    def _check_settings(self) -> None:
        """
        Check all settings as they are now.

        :raises TypeError: if one is of the wrong type
        :raises ValueError: if one makes no sense
        """
        self._take_settings(**{name: getattr(self, name) for name in self.settings})
