"""The type of a rule, and functions of a log that several rules use."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from sb3_policyopt.plots.runs import NONFINITE, STEPS

Severity = Literal["error", "warning"]
Settings = Mapping[str, object]
"""Hyperparameters under the names of the constructors, and facts of the run (``n_timesteps``, ``finished``, ...)."""


@dataclass(frozen=True)
class Finding:
    """
    One problem of a run.

    :param severity: "error" when the result of the run is not valid, "warning" when its performance may be lower
    :param what: the finding, one sentence
    :param evidence: the numbers that it is based on
    :param advice: what to try
    :param source: reference for the criterion
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
    A check, and the metrics and settings that it needs.

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
        """Whether log and settings contain what the check needs."""
        logged = not self.columns or any(_has_values(log, column) for column in self.columns)
        return logged and all(settings.get(name) is not None for name in self.settings)


def rule(columns: tuple[str, ...] = (), settings: tuple[str, ...] = ()) -> Callable[[Check], Rule]:
    """
    Turn a check into a rule.

    :param columns: see :class:`Rule`
    :param settings: see :class:`Rule`
    :return: decorator
    """
    return lambda check: Rule(check, columns, settings)


def number(settings: Settings, name: str) -> float | None:
    """
    Read a setting that is a number.

    :param settings: the settings
    :param name: of the setting
    :return: None if it is missing, or not a finite number
    """
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        converted = float(value)  # YAML 1.1 reads 1e6 as a string
    except (ValueError, OverflowError):
        return None
    return converted if np.isfinite(converted) else None


def _has_values(log: pd.DataFrame, column: str) -> bool:
    """Whether a metric has a finite value, or the column with the names of metrics that are not finite a row."""
    if column == NONFINITE:
        return column in log and bool(log[column].notna().any())
    return len(values(log, column)) > 0


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


def as_numbers(log: pd.DataFrame, column: str) -> pd.Series:
    """
    The values of a metric, row by row.

    :param log: the log
    :param column: metric
    :return: NaN where it was not logged, or is not a number
    """
    if column not in log:
        return pd.Series(np.nan, index=log.index)
    numbers: pd.Series = pd.to_numeric(log[column], errors="coerce")
    return numbers


def latter_half(numbers: np.ndarray) -> np.ndarray:
    """
    The second half of a series.

    :param numbers: shape [K]
    :return: shape [K - K // 2]
    """
    half: np.ndarray = numbers[len(numbers) // 2 :]
    return half


def step_of_maximum(log: pd.DataFrame, column: str) -> int:
    """
    Find the step at which a metric was largest.

    :param log: the log
    :param column: metric with at least one finite value
    :return: environment steps
    """
    numbers = log[column].to_numpy(dtype=float)
    return int(log[STEPS].to_numpy()[int(np.argmax(np.where(np.isfinite(numbers), numbers, -np.inf)))])


_FIRST_ROWS = 5
"""Of which the return at the beginning is the mean, at most: many tasks are learnt within a tenth of the run."""


@dataclass(frozen=True)
class Learning:
    """
    The return at three times of the run (means over a tenth of it, at the beginning over fewer rows).

    :param start: at the beginning
    :param best: at its highest
    :param end: at the end
    """

    start: float
    best: float
    end: float

    @property
    def rose(self) -> bool:
        """Whether the best was clearly above the start: by more than 0.3 of its size, more than noise usually causes."""
        return self.best - self.start > 0.3 * max(abs(self.start), abs(self.best))

    @property
    def kept(self) -> bool:
        """Whether more than half of the rise remains at the end."""
        return self.end - self.start > 0.5 * (self.best - self.start)

    @property
    def fell(self) -> bool:
        """Whether the end was clearly below the start."""
        return self.start - self.end > 0.3 * max(abs(self.start), abs(self.end))

    @property
    def succeeded(self) -> bool:
        """Whether the return rose and did not fall again."""
        return self.rose and self.kept


def learning(log: pd.DataFrame) -> Learning | None:
    """
    Summarise the return over the run.

    :param log: the log
    :return: None if fewer than five returns were logged
    """
    returns = values(log, "rollout/ep_rew_mean")
    if len(returns) < 5:
        return None
    width = max(1, len(returns) // 10)
    means = np.convolve(returns, np.full(width, 1 / width), mode="valid")
    return Learning(float(returns[: min(width, _FIRST_ROWS)].mean()), float(means.max()), float(means[-1]))


def succeeded(log: pd.DataFrame, settings: Settings) -> bool:
    """
    Test whether the return rose and did not fall again; of an agent that was trained before, whether it did not fall. A bad
    critic and little entropy are normal after a task is solved.

    :param log: the log
    :param settings: of the run
    :return: False also when there are too few returns
    """
    course = learning(log)
    if course is None:
        return False
    return course.succeeded or (was_trained_before(log, settings) and not course.fell)


def was_trained_before(log: pd.DataFrame, settings: Settings) -> bool:
    """
    Whether the first updates of an agent are not in its log; those of a resumed run are.

    :param log: the log
    :param settings: of the run
    :return: True for an agent that was trained in another run or an earlier call of ``learn``
    """
    return bool(settings.get("continued_from")) or 0 < (number(settings, "start_timesteps") or 0) <= log[STEPS].min()
