"""Reads the files of a training run: the csv log, evaluations, Monitor files and the configuration."""

import csv
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from sb3_policyopt import registry
from sb3_policyopt.plots.config import read_config

MONITOR_FILES = "*monitor.csv"
STEPS = "time/total_timesteps"
RETURN = "rollout/ep_rew_mean"
NONFINITE = "nonfinite"
"""Column with the names of the metrics that were logged as nan or inf in each row (an empty cell was not logged)."""

_MONITOR_WINDOW = 100  # episodes, as in SB3's ``stats_window_size``
_MAX_ROLLOUT_ROWS = 2000


ReadT = TypeVar("ReadT")


@dataclass(frozen=True)
class Run:
    """
    One training run.

    :param path: the folder or csv file that was given
    :param algo: name of a registered algorithm, such as "ppo", or "" when unknown
    :param env: environment id, or "" when unknown
    :param metrics: one row per line of the log, sorted by ``time/total_timesteps``; a cell that was not written is NaN
    :param evaluations: columns ``timesteps`` and ``mean`` (mean return of the evaluation's episodes)
    :param hyperparameters: the arguments of the training, as far as they were recorded
    :param facts: what else was recorded of this run: ``seed``, ``finished``, ...
    """

    path: Path
    algo: str
    env: str
    metrics: pd.DataFrame
    evaluations: pd.DataFrame
    hyperparameters: dict[str, object] = field(default_factory=dict)
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def was_resumed(self) -> bool:
        """Whether it went on from a checkpoint of a run whose log it has, too."""
        start = self.facts.get("start_timesteps")
        return isinstance(start, int) and len(self.metrics) > 0 and bool(self.metrics[STEPS].min() < start)

    def series(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """
        One metric over time.

        :param column: name in the log
        :return: environment steps and values, both of shape [rows where the metric is finite]
        """
        if column not in self.metrics or not pd.api.types.is_numeric_dtype(self.metrics[column]):
            return np.empty(0), np.empty(0)
        values = self.metrics[column].to_numpy(dtype=float)
        steps = self.metrics[STEPS].to_numpy(dtype=float)
        finite = np.isfinite(values) & np.isfinite(steps)
        return steps[finite], values[finite]


def find_runs(path: str | Path) -> list[Path]:
    """
    Find the runs of a path: the path itself, or the run folders directly inside it.

    :param path: run folder, csv file, or a folder of run folders such as ``logs/ppo``
    :return: at least one path, in the order of their numbers (``_2`` before ``_10``)
    :raises ValueError: when there is no run
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no run folder {path}.")
    if path.is_file() or _is_run(path):
        return [path]
    inner = sorted((p for p in path.iterdir() if p.is_dir() and _is_run(p)), key=_natural_order)
    if not inner:
        raise ValueError(f"{path} is not a run folder: it holds neither progress.csv nor evaluations.npz nor *monitor.csv.")
    return inner


def read_runs(paths: Iterable[str | Path], read: Callable[[Path], ReadT]) -> tuple[list[ReadT], list[str]]:
    """
    Read runs, and those of folders as far as they can be read.

    :param paths: runs, or folders of runs
    :param read: of one run
    :return: what it returned, and why it could not read others of a folder
    :raises ValueError: when a run that was named cannot be read, or none of a folder
    """
    found: list[ReadT] = []
    skipped: list[str] = []
    for path in paths:
        runs, before = find_runs(path), len(found)
        for run in runs:
            try:
                found.append(read(run))
            except ValueError as error:
                if len(runs) == 1:
                    raise
                skipped.append(str(error))
        if len(found) == before:
            raise ValueError(f"No run in {path} can be read. {skipped[-1]}")
    return found, skipped


def read_run(path: str | Path) -> Run:
    """
    Read one run.

    :param path: a folder with ``progress.csv``, ``evaluations.npz`` or ``*monitor.csv``, or one such csv file
    :return: the run
    :raises ValueError: when the path is no run, or contains no number that can be read
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no run folder {path}.")
    folder = path if path.is_dir() else path.parent
    if path.is_file():
        metrics = _read_csv(path)
    elif not _is_run(path):
        raise ValueError(f"{path} is not a run folder: it holds neither progress.csv nor evaluations.npz nor *monitor.csv.")
    else:
        metrics = _read_progress(folder / "progress.csv") if (folder / "progress.csv").exists() else _empty_log()
        if RETURN not in metrics or metrics[RETURN].isna().all():
            rollouts = _read_monitor(sorted(folder.glob(MONITOR_FILES)))
            metrics = pd.concat([metrics.drop(columns=[RETURN], errors="ignore"), rollouts], ignore_index=True)
            metrics = metrics.sort_values(STEPS, kind="stable", ignore_index=True)
    evaluations = _read_evaluations(folder / "evaluations.npz") if path.is_dir() else _no_evaluations()
    if metrics.empty and evaluations.empty:
        raise ValueError(f"{path} holds no data yet: not a single line was logged.")
    hyperparameters, facts = read_config(folder)
    algo, env = _algorithm(folder, metrics, facts), _environment(folder, facts)
    return Run(path, algo, env, metrics, evaluations, hyperparameters, facts)


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("progress.csv", "evaluations.npz")) or any(folder.glob(MONITOR_FILES))


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """A key that orders the numbers in a name by their values: every odd part of the split is a number."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if position % 2 else (0, part) for position, part in enumerate(parts)]


def _empty_log() -> pd.DataFrame:
    return pd.DataFrame({STEPS: pd.Series(dtype=float)})


def _no_evaluations() -> pd.DataFrame:
    return pd.DataFrame({"timesteps": pd.Series(dtype=float), "mean": pd.Series(dtype=float)})


def _read_csv(path: Path) -> pd.DataFrame:
    with path.open(encoding="utf-8", errors="replace") as file:
        if file.read(1) == "#":
            return _read_monitor([path])
    return _read_progress(path)


def _read_progress(path: Path) -> pd.DataFrame:
    """
    Read a log of SB3's csv writer.

    The last line of a killed process may be incomplete, and a resumed one may write another header into the same file. Each
    line is read by the header above it, so that no value moves to another column.
    """
    header: list[str] = []
    rows: list[dict[str, str]] = []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for cells in csv.reader(line.replace("\0", "") for line in file):
            if STEPS in cells or not header:
                header = cells
            elif any(cells):
                rows.append(dict(zip(header, cells, strict=False)))
    if header and STEPS not in header:
        raise ValueError(f"{path} is not a log of Stable-Baselines3: it has no column {STEPS}.")
    return _to_table(rows)


def _to_table(rows: Sequence[dict[str, str]]) -> pd.DataFrame:
    texts = pd.DataFrame(list(rows), dtype=object).replace({"True": "1", "False": "0"})
    table = {name: _to_numbers(texts[name]) for name in texts}
    nonfinite = texts.isin(["nan", "inf", "-inf"])
    frame = pd.DataFrame(table, index=texts.index)
    if STEPS not in frame:
        return _empty_log()
    frame[NONFINITE] = [",".join(texts.columns[flags]) for flags in nonfinite.to_numpy(dtype=bool)]
    frame[STEPS] = pd.to_numeric(texts[STEPS], errors="coerce").astype(float)  # also where most are words
    return frame[np.isfinite(frame[STEPS])].sort_values(STEPS, kind="stable", ignore_index=True)


def _to_numbers(texts: pd.Series) -> pd.Series:
    """Convert a column to numbers, unless most of it is text."""
    numbers = pd.to_numeric(texts, errors="coerce").astype(float)
    written = texts.fillna("").astype(str) != ""
    words = written & numbers.isna() & ~texts.isin(["nan"])
    return texts.where(written) if words.sum() > written.sum() / 2 else numbers


def _read_monitor(paths: Sequence[Path]) -> pd.DataFrame:
    """Mean return and length of the last 100 episodes, by the total number of steps of all environments."""
    episodes = []
    for path in paths:
        try:
            started = json.loads(path.read_text(encoding="utf-8").partition("\n")[0].lstrip("#"))["t_start"]
            table = pd.read_csv(path, comment="#", usecols=["r", "l", "t"], on_bad_lines="skip")
        except (ValueError, KeyError, TypeError, pd.errors.EmptyDataError):  # the worker was killed before its first line
            continue
        table = table.apply(pd.to_numeric, errors="coerce").dropna()
        episodes.append(table.assign(t=table["t"] + started))
    if not episodes:
        return _empty_log()
    table = pd.concat(episodes).sort_values("t", kind="stable", ignore_index=True)
    window = table.rolling(_MONITOR_WINDOW, min_periods=1).mean()
    rollouts = pd.DataFrame({STEPS: table["l"].cumsum(), RETURN: window["r"], "rollout/ep_len_mean": window["l"]})
    return rollouts.iloc[:: max(1, len(rollouts) // _MAX_ROLLOUT_ROWS)].astype(float).reset_index(drop=True)


def _read_evaluations(path: Path) -> pd.DataFrame:
    """Read what ``EvalCallback(log_path=...)`` writes: ``timesteps`` [K] and ``results`` [K, episodes]."""
    if not path.exists():
        return _no_evaluations()
    try:
        with np.load(path) as data:
            steps, results = np.asarray(data["timesteps"], dtype=float), np.asarray(data["results"], dtype=float)
        if steps.ndim != 1 or results.size == 0 or results.shape[:1] != steps.shape:
            raise ValueError(f"{results.shape} results of {steps.shape} evaluations")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{path} is left out, as it is empty or damaged: {error}")
        return _no_evaluations()
    mean = results.reshape(len(steps), -1).mean(axis=1)
    return pd.DataFrame({"timesteps": steps, "mean": mean}).dropna()


def _algorithm(folder: Path, metrics: pd.DataFrame, facts: dict[str, object]) -> str:
    """The algorithm, by the metrics in the log; if several or none match, by the configuration and the name of the folder."""
    logged = [name for name, algorithm in registry.ALGORITHMS.items() if algorithm.metric in metrics]
    trained = registry.of_class(str(facts.get("algorithm", "")).rpartition(".")[2])
    if trained is not None and trained.name in (logged or registry.ALGORITHMS):
        return trained.name
    named = {str(facts.get("algo", "")).lower(), folder.resolve().parent.name.lower()} & set(logged or registry.ALGORITHMS)
    return named.pop() if len(named) == 1 else next(iter(logged), "")


def _environment(folder: Path, facts: dict[str, object]) -> str:
    if facts.get("env"):
        return str(facts["env"])
    zoo_folder = re.fullmatch(r"(.+-v\d+)_\d+", folder.resolve().name)
    return zoo_folder.group(1) if zoo_folder else ""
