"""What a run leaves besides its model: ``progress.csv``, and what ``provenance.json`` records of how it was made."""

import csv
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import CSVOutputFormat
from stable_baselines3.common.utils import ConstantSchedule
from torch import nn

from sb3_policyopt.saving.constructors import parameters_of

PROGRESS = "progress.csv"
PROVENANCE = "provenance.json"

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
"""Distributions whose version can change a result."""


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


class GitState(TypedDict):
    """
    The state of a working tree.

    :param commit: hash of the commit that is checked out
    :param modified: whether tracked files differ from it
    """

    commit: str
    modified: bool


def git_state(folder: Path | None = None) -> GitState | None:
    """
    Read the state of a working tree from git.

    :param folder: a folder inside it (the current one by default)
    :return: the state; None outside a repository
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


def effective_hyperparameters(model: BaseAlgorithm, given: Mapping[str, object]) -> dict[str, object]:
    """
    List every constructor argument of an algorithm with the value in use.

    :param model: the algorithm
    :param given: values as they were written, such as ``"lin_0.2"``, which replace those that the algorithm has made of them
    :return: value by argument name
    """
    passed_by_caller = {"env", "verbose", "seed", "device", "tensorboard_log"}
    names = [name for name in parameters_of(type(model)) if name not in passed_by_caller and not name.startswith("_")]
    schedules: Mapping[str, object] = getattr(model, "schedules", {})  # ours has the value of the moment in the attribute
    in_use = {name: schedules.get(name, getattr(model, name)) for name in names if hasattr(model, name)}
    return {**in_use, "policy": model.policy_class.__name__, **given}


def described(value: object) -> float | str:
    """What stands in JSON for a value that JSON cannot hold: of a class its name, of a constant schedule its value."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    schedule = getattr(value, "value_schedule", value)
    return schedule.val if isinstance(schedule, ConstantSchedule) else repr(schedule)


def with_text_keys(value: object) -> object:
    """
    A value whose dictionaries JSON can hold.

    :param value: anything
    :return: the same, with texts in place of keys that are neither texts nor numbers
    """
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        plain = (str, int, float, bool, type(None))
        return {key if isinstance(key, plain) else str(key): with_text_keys(item) for key, item in items}
    return [with_text_keys(item) for item in value] if isinstance(value, (list, tuple)) else value


def half_range(space: spaces.Space[Any]) -> float | None:
    """
    Half of the range of an action.

    :param space: of actions
    :return: of a Box whose dimensions all have the same, in units of the action; None for others, without finite bounds, and
        for bounds so wide (1e6) that they only stand for none
    """
    if not isinstance(space, spaces.Box) or not space.is_bounded():
        return None
    half_ranges = (space.high.astype(float) - space.low) / 2
    alike = np.ptp(half_ranges) <= 1e-6 * half_ranges.max() and half_ranges.max() < 1e6
    return float(half_ranges.mean()) if alike else None


def shared_extractor_parameters(policy: nn.Module) -> int:
    """
    Count what a features extractor that actor and critic share can learn.

    :param policy: of a model
    :return: numbers in the trainable parameters that the extractors of both have; 0 for policies without such extractors
    """
    extractors = [getattr(policy, name, None) for name in ("pi_features_extractor", "vf_features_extractor")]
    actors, critics = ({*part.parameters()} if isinstance(part, nn.Module) else set() for part in extractors)
    return sum(parameter.numel() for parameter in actors & critics if parameter.requires_grad)


class ContinuedCSV(CSVOutputFormat):
    """
    SB3's CSV output, but appending to an existing file instead of emptying it.

    :param filename: the file
    :param num_timesteps: timesteps trained so far; rows of later timesteps and incomplete rows are dropped
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
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # a crash may have cut the last line short
    names = list(reader.fieldnames or [])
    return names, [row for row in reader if {*row} == {*names} and None not in row.values() and _steps(row) <= num_timesteps]


def _steps(row: Mapping[str, str]) -> float:
    """The timestep of a row; infinite where there is none, as in a row that a crash has cut."""
    try:
        return float(row.get("time/total_timesteps") or "inf")
    except ValueError:
        return float("inf")
