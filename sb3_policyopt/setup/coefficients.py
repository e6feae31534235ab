"""Coefficients that follow schedules: a number, a callable of ``progress_remaining``, or "lin_X"."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule

from sb3_policyopt.setup import arguments


class Scheduled(OnPolicyAlgorithm):
    """An algorithm whose coefficients are plain floats, as in SB3, and may follow schedules."""

    coefficient_names: ClassVar[tuple[str, ...]] = ()
    """Coefficients that stock SB3 keeps as plain floats, and that may follow a schedule here."""
    bounds: ClassVar[dict[str, arguments.Bounds]] = {"learning_rate": arguments.NOT_NEGATIVE}
    """Smallest and largest value of each coefficient: what SB3 takes, less what no training can use."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Coefficients that may be None."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.schedules: dict[str, FloatSchedule] = {}
        self.scheduled_values: dict[str, float] = {}
        super().__init__(*args, **kwargs)

    def _take_coefficients(self, coefficients: Mapping[str, arguments.Coefficient | None]) -> None:
        """
        Check coefficients as they were given, and keep them.

        :param coefficients: by name
        :raises ValueError: if one makes no sense
        """
        for name, value in coefficients.items():
            given = value is not None or name not in self.optional
            setattr(self, name, arguments.coefficient(name, value, self.bounds[name]) if given else None)

    def _take_instead(self, given: Mapping[str, object]) -> None:
        """
        Coefficients that :meth:`load` was given replace the schedules that were saved, also where the number is the same.

        :param given: attributes by name
        """
        for name in self.schedules.keys() & given.keys():
            del self.schedules[name]
            setattr(self, name, given[name])
        self._update_coefficients()

    @contextmanager
    def keeping_schedules(self, names: Collection[str]) -> Iterator[None]:
        """
        A context at whose end some coefficients have the schedules that they had at its start.

        :param names: of the coefficients; those of others are not changed
        """
        mine = [name for name in self.coefficient_names if name in names]
        schedules = {name: self.schedules[name] for name in mine if name in self.schedules}
        scheduled = {name: self.scheduled_values[name] for name in mine if name in self.scheduled_values}
        yield
        for name in mine:
            self.schedules.pop(name, None)
            self.scheduled_values.pop(name, None)
        self.schedules.update(schedules)
        self.scheduled_values.update(scheduled)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """
        Set the learning rate to its value at the current progress.

        :param optimizers: one or several
        :raises ValueError: if the schedule gives a number that is no learning rate
        """
        super()._update_learning_rate(optimizers)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                self._in_bounds("learning_rate", group["lr"])

    def _in_bounds(self, name: str, value: Any) -> float:
        """
        Look at what a schedule gave, or at what was assigned.

        The last rollout of a training may end after ``total_timesteps``. There ``progress_remaining`` is negative, and so is
        a coefficient that falls linearly to 0. SB3 goes on with it, and so do we.

        :param name: of the coefficient
        :param value: its value
        :return: the value as a Python float
        :raises ValueError: if it makes no sense; the message names it
        """
        low, high = self.bounds[name]
        over = self._current_progress_remaining < 0
        return arguments.number(name, value, (-arguments.LARGEST if over else low, high))

    def _update_coefficients(self) -> dict[str, float]:
        """
        Set every scheduled coefficient to its value at the current progress.

        The attribute is always a plain float, which stock SB3 understands; assigning a number, a callable or "lin_X" to
        it during training works too.

        :return: the scheduled coefficients
        """
        for name in self.coefficient_names:
            value = getattr(self, name)
            if callable(value) or isinstance(value, str):
                self.schedules[name] = FloatSchedule(arguments.coefficient(name, value, self.bounds[name]))
            elif name in self.schedules and value != self.scheduled_values[name]:
                del self.schedules[name]  # a number was assigned, which holds from now on
            if name in self.schedules:
                value = self.scheduled_values[name] = self.schedules[name](self._current_progress_remaining)
            if value is not None or name not in self.optional:
                setattr(self, name, self._in_bounds(name, value))
        return {name: getattr(self, name) for name in self.schedules}
