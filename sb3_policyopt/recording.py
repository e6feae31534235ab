"""What a run leaves behind besides its model: ``progress.csv``, and ``provenance.json`` to tell how it was made."""

import csv
import inspect
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat
from stable_baselines3.common.utils import ConstantSchedule

PROGRESS = "progress.csv"
PROVENANCE = "provenance.json"

#: Distributions whose version can change a result.
DISTRIBUTIONS = (
    "sb3-policyopt",
    "stable-baselines3",
    "sb3-contrib",
    "rl-zoo3",
    "torch",
    "numpy",
    "gymnasium",
    "mujoco",
    "box2d",
    "ale-py",
    "minigrid",
    "pybullet",
    "envpool",
)


@cache
def installed_versions() -> dict[str, str]:
    """
    Look up what is installed, once.

    :return: version by distribution, of those in ``DISTRIBUTIONS`` that are installed, and of Python
    """
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """
    Ask git for the state of a working tree.

    :param folder: a folder inside it (the current one by default)
    :return: ``{"commit": hash, "modified": whether tracked files differ from it}``, or None outside a repository
    """

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL
        )
        return result.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit yet
        return None


def effective_hyperparameters(model: BaseAlgorithm, given: Mapping[str, Any]) -> dict[str, Any]:
    """
    List every constructor argument of an algorithm with the value in use.

    :param model: the algorithm
    :param given: values as they were written, such as ``"lin_0.2"``, where they say more than what the algorithm made of them
    :return: value by argument name
    """
    passed_by_caller = {"self", "env", "verbose", "seed", "device", "tensorboard_log"}
    parameters = inspect.signature(type(model).__init__).parameters
    names = [name for name in parameters if name not in passed_by_caller and not name.startswith("_")]
    in_use = {name: getattr(model, name) for name in names if hasattr(model, name)}
    return {**in_use, "policy": model.policy_class.__name__, **given}


def write_atomically(path: Path, text: str) -> None:
    """
    Write a file so that a reader, or a crash, meets either the old content or the new.

    :param path: the file
    :param text: its new content
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(text.encode("utf-8"))
    partial.replace(path)


class ContinuedCSV(CSVOutputFormat):
    """
    SB3's CSV output, which goes on with the file it finds instead of emptying it.

    :param filename: the file
    :param num_timesteps: where the training stands; later rows, and one that a crash cut short, are dropped
    """

    def __init__(self, filename: str, num_timesteps: int) -> None:
        keys, rows = _rows_until(Path(filename), num_timesteps)
        super().__init__(filename)
        if rows:
            self.keys = keys
            writer = csv.DictWriter(self.file, keys, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            self.file.flush()


def _rows_until(path: Path, num_timesteps: int) -> tuple[list[str], list[dict[str, str]]]:
    if num_timesteps == 0 or not path.is_file():
        return [], []
    text = path.read_text(encoding="utf-8")
    reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # a crash may have cut the last line short
    rows = [row for row in reader if _steps(row) <= num_timesteps]
    return list(reader.fieldnames or []), rows


def _steps(row: Mapping[str, str]) -> float:
    return float(row.get("time/total_timesteps") or "inf")


class RunRecorder(BaseCallback):
    """
    Write ``progress.csv`` (all that is logged, one row for each dump of the logger) and ``provenance.json`` into a folder.

    The provenance is collected when the training starts, not when somebody asks for it: versions, the commit of the git
    repository in the current folder, seed, arguments, hyperparameters. Steps, wall time and whether the training came to its
    end are added by :meth:`save`, which the end of the training calls too.

    :param folder: an existing folder
    :param hyperparameters: constructor arguments as they were written; the others are recorded as the algorithm has them
    :param facts: more entries for ``provenance.json``, such as the environment id
    """

    def __init__(
        self, folder: str | Path, hyperparameters: Mapping[str, Any] | None = None, facts: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.hyperparameters = dict(hyperparameters or {})
        self.facts = dict(facts or {})
        self.record: dict[str, Any] = {}
        self._clock = 0.0

    def _on_training_start(self) -> None:
        self._clock = time.perf_counter()
        path = str(self.folder / PROGRESS)
        if not any(
            getattr(output.file, "name", "") == path for output in self.logger.output_formats if hasattr(output, "file")
        ):
            self.logger.output_formats.append(ContinuedCSV(path, self.model.num_timesteps))
        self.record = {
            **self.facts,
            "algorithm": f"{type(self.model).__module__}.{type(self.model).__name__}",
            "seed": self.model.seed,
            "n_envs": self.model.n_envs,
            "device": str(self.model.device),
            "torch_threads": th.get_num_threads(),
            "platform": platform.platform(),
            "processor_cores": os.cpu_count(),
            "versions": installed_versions(),
            "git": git_state(),
            "hyperparameters": effective_hyperparameters(self.model, self.hyperparameters),
            "started": _now(),
            "start_timesteps": self.model.num_timesteps,
            "requested_timesteps": self.model._total_timesteps,
        }
        self.save()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.save()

    def save(self) -> None:
        """Bring ``provenance.json`` up to date; call it after a training that an exception ended."""
        if not self.record:  # the training never started
            return
        self.record.update(
            device=str(self.model.device),  # a resumed run goes on where its checkpoint was made
            total_timesteps=self.model.num_timesteps,
            finished=self.model.num_timesteps >= self.record["requested_timesteps"],
            wall_time_seconds=round(time.perf_counter() - self._clock, 3),
            updated=_now(),
        )
        write_atomically(self.folder / PROVENANCE, json.dumps(self.record, indent=2, default=_describe) + "\n")


def _describe(value: Any) -> Any:
    """Put into JSON what it has no form for: classes by name, constant schedules by their value."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    schedule = getattr(value, "value_schedule", value)
    return schedule.val if isinstance(schedule, ConstantSchedule) else repr(schedule)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
