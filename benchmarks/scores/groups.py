"""The rows of one configuration together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.scores import entries
from benchmarks.scores.runs import OURS, SEARCH_SEEDS, STOCK, Row
from sb3_policyopt.plots.statistics import bootstrap_interval, interquartile_mean


@dataclass(frozen=True)
class Group:
    """
    Seeds of one entry.

    :param rows: at least one, by seed; they differ in nothing else
    """

    rows: tuple[Row, ...]

    @property
    def algo(self) -> str:
        """Name of the algorithm."""
        return self.rows[0]["algo"]

    @property
    def env_id(self) -> str:
        """The environment."""
        return self.rows[0]["env_id"]

    @property
    def n_timesteps(self) -> int:
        """Steps of the training."""
        return int(self.rows[0]["n_timesteps"])

    @property
    def returns(self) -> np.ndarray:
        """Mean return of each seed."""
        return np.array([float(row["mean"]) for row in self.rows])

    @property
    def minutes(self) -> float | None:
        """Shortest wall time of a training, without rows of before the harness, which were made by slower versions."""
        seconds = [float(row["wall_seconds"]) for row in self.rows if row["wall_seconds"] and row["commit"]]
        return min(seconds) / 60 if seconds else None

    @property
    def iqm(self) -> float:
        """Interquartile mean over the seeds."""
        return float(interquartile_mean(self.returns))

    @property
    def interval(self) -> tuple[float, float]:
        """95% bootstrap interval of the interquartile mean."""
        low, high = bootstrap_interval(self.returns)
        return float(low), float(high)


def group(rows: Sequence[Row]) -> list[Group]:
    """
    Put seeds of the same configuration together; those of a search stay apart.

    :param rows: of the CSV file
    :return: in the order of their first rows
    """
    found: dict[tuple[str | bool, ...], list[Row]] = {}
    for row in rows:
        names = ("implementation", "algo", "env_id", "entry_hash", "n_timesteps")
        key = (*(row[name] for name in names), int(row["seed"]) >= SEARCH_SEEDS)
        found.setdefault(key, []).append(row)
    return [Group(tuple(sorted(group, key=lambda row: int(row["seed"])))) for group in found.values()]


def is_shipped(group_: Group) -> bool:
    """Whether these are runs of the entry that hyperparams/*.yml has now, with its steps and seeds that no search saw."""
    first = group_.rows[0]
    if first["implementation"] != OURS or int(first["seed"]) >= SEARCH_SEEDS:
        return False
    if not entries.is_listed(group_.algo, group_.env_id):
        return False
    entry = entries.load(group_.algo, group_.env_id)
    return first["entry_hash"] == entries.identity(entry) and group_.n_timesteps == int(float(entry["n_timesteps"]))


def stocks_for(group_: Group, groups: Sequence[Group]) -> list[Group]:
    """
    SB3's or sb3-contrib's groups with the same algorithm, environment and steps, whatever their entry.

    :param group_: ours
    :param groups: all
    :return: the best one first
    """
    same = [
        other
        for other in groups
        if other.rows[0]["implementation"] == STOCK
        and int(other.rows[0]["seed"]) < SEARCH_SEEDS
        and (other.algo, other.env_id, other.n_timesteps) == (group_.algo, group_.env_id, group_.n_timesteps)
    ]
    return sorted(same, key=lambda other: other.iqm, reverse=True)


def stock_for(group_: Group, groups: Sequence[Group]) -> Group | None:
    """
    The best of SB3's or sb3-contrib's groups.

    :param group_: ours
    :param groups: all
    :return: None if there is none
    """
    return next(iter(stocks_for(group_, groups)), None)
