"""What one training is, and the CSV file that keeps what it came to."""

import csv
import fcntl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "scores.csv"
COLUMNS = [
    "implementation",
    "algo",
    "env_id",
    "entry",
    "entry_hash",
    "n_timesteps",
    "seed",
    "mean",
    "std",
    "n_episodes",
    "wall_seconds",
    "commit",
    "versions",
    "curve",
]
#: Seeds from here on belong to the search for an entry; those below are reported.
SEARCH_SEEDS = 1000

OURS, STOCK = "ours", "stock"
Row = dict[str, str]


@dataclass(frozen=True)
class Run:
    """
    One training. Two runs are the same if all but the name of the entry agree.

    :param implementation: "ours", or "stock" for SB3's PPO and sb3-contrib's TRPO
    :param algo: "ppo" or "trpo"
    :param env_id: the environment
    :param entry: name of the entry
    :param entry_hash: its identity
    :param n_timesteps: environment steps
    :param seed: of the training
    """

    implementation: str
    algo: str
    env_id: str
    entry: str
    entry_hash: str
    n_timesteps: int
    seed: int

    @property
    def key(self) -> tuple[str, ...]:
        """What tells the run from others."""
        return (self.implementation, self.algo, self.env_id, self.entry_hash, str(self.n_timesteps), str(self.seed))

    @property
    def folder_name(self) -> str:
        """The key as a name of a folder."""
        return "_".join(self.key).replace("/", "-")


def key(row: Row) -> tuple[str, ...]:
    """The key of the run that a row belongs to."""
    return tuple(row[name] for name in ("implementation", "algo", "env_id", "entry_hash", "n_timesteps", "seed"))


def read(path: Path = RESULTS) -> list[Row]:
    """
    Read the rows so far.

    :param path: the CSV file
    :return: none if it does not exist
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def missing(wanted: Iterable[Run], path: Path = RESULTS) -> list[Run]:
    """
    The runs that have no row yet.

    :param wanted: runs, in the order in which to make them
    :param path: the CSV file
    :return: the same without those that are there
    """
    there = {key(row) for row in read(path)}
    return [run for run in wanted if run.key not in there]


def append(run: Run, outcome: dict[str, Any], path: Path = RESULTS) -> Row:
    """
    Add what a run came to, whatever other processes add meanwhile.

    :param run: the run
    :param outcome: the columns that are not the run's own
    :param path: the CSV file
    :return: the row
    """
    row = {name: str(vars(run).get(name, outcome.get(name, ""))) for name in COLUMNS}
    with path.open("a", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if path.stat().st_size == 0:
            writer.writeheader()
        writer.writerow(row)
    return row
