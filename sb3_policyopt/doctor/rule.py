"""What a rule is, and the few questions that many rules ask of a log."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

Severity = Literal["error", "warning"]
Settings = Mapping[str, Any]
"""Hyperparameters under the names of the constructors, and facts of the run (``n_timesteps``, ``finished``, ...)."""


@dataclass(frozen=True)
class Finding:
    """
    One thing that looks wrong.

    :param severity: "error" when the run as it is cannot be trusted, "warning" when it may cost performance
    :param what: the finding, one sentence
    :param evidence: the numbers behind it
    :param advice: what to try
    :param source: where the criterion comes from
    :param rule: name of the rule that found it, filled in by :class:`Rule`
    """

    severity: Severity
    what: str
    evidence: str
    advice: str
    source: str
    rule: str = ""


Check = Callable[[pd.DataFrame, Settings], Finding | None]


@dataclass(frozen=True)
class Rule:
    """
    A check, and what it needs in order to be made.

    :param check: pure function of the log (one row per dump, sorted by steps) and the settings
    :param columns: metrics of which at least one must have been logged
    :param settings: settings that must be known
    """

    check: Check
    columns: tuple[str, ...]
    settings: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the check."""
        return self.check.__name__

    def applies(self, log: pd.DataFrame, settings: Settings) -> bool:
        """Whether log and settings hold what the check needs."""
        logged = not self.columns or any(column in log and log[column].notna().any() for column in self.columns)
        return logged and all(settings.get(name) is not None for name in self.settings)


def rule(columns: tuple[str, ...] = (), settings: tuple[str, ...] = ()) -> Callable[[Check], Rule]:
    """
    Turn a check into a rule.

    :param columns: see :class:`Rule`
    :param settings: see :class:`Rule`
    :return: decorator
    """
    return lambda check: Rule(check, columns, settings)


def values(log: pd.DataFrame, column: str) -> np.ndarray:
    """
    The finite values of a metric in the order of time.

    :param log: the log
    :param column: metric
    :return: shape [updates], empty if the metric was not logged as a number
    """
    if column not in log or not pd.api.types.is_numeric_dtype(log[column]):
        return np.empty(0)
    numbers: np.ndarray = log[column].to_numpy(dtype=float)
    finite: np.ndarray = numbers[np.isfinite(numbers)]
    return finite


def latter_half(numbers: np.ndarray) -> np.ndarray:
    """
    What remains when the beginning of the training is left out.

    :param numbers: shape [K]
    :return: shape [K - K // 2]
    """
    half: np.ndarray = numbers[len(numbers) // 2 :]
    return half


def step_of_maximum(log: pd.DataFrame, column: str) -> int:
    """
    When a metric was largest.

    :param log: the log
    :param column: metric with at least one finite value
    :return: environment steps
    """
    numbers = log[column].to_numpy(dtype=float)
    return int(log["time/total_timesteps"].to_numpy()[int(np.argmax(np.where(np.isfinite(numbers), numbers, -np.inf)))])


@dataclass(frozen=True)
class Learning:
    """
    The course of the return, in three numbers (means over a tenth of the run).

    :param start: at the beginning
    :param best: at its highest
    :param end: at the end
    """

    start: float
    best: float
    end: float

    @property
    def rose(self) -> bool:
        """Whether the best was clearly above the start: by more than 0.3 of the return's size, as noise alone seldom is."""
        return self.best - self.start > 0.3 * max(abs(self.start), abs(self.best))

    @property
    def kept(self) -> bool:
        """Whether more than half of the rise is still there at the end."""
        return self.end - self.start > 0.5 * (self.best - self.start)

    @property
    def succeeded(self) -> bool:
        """Whether the return rose and stayed up."""
        return self.rose and self.kept


def learning(log: pd.DataFrame) -> Learning | None:
    """
    How the return went.

    :param log: the log
    :return: None if fewer than five returns were logged
    """
    returns = values(log, "rollout/ep_rew_mean")
    if len(returns) < 5:
        return None
    width = max(1, len(returns) // 10)
    means = np.convolve(returns, np.full(width, 1 / width), mode="valid")
    return Learning(float(means[0]), float(means.max()), float(means[-1]))


def succeeded(log: pd.DataFrame) -> bool:
    """
    Whether the run learnt. Some symptoms (a bad critic, little entropy) are normal once a task is solved.

    :param log: the log
    :return: False also when it is unknown
    """
    course = learning(log)
    return course is not None and course.succeeded
