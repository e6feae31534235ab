"""Checks of an entry of hyperparameters for values that rl-zoo3 would answer with a traceback."""

import importlib
import numbers
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from sb3_policyopt.errors import UserError

ReadT = TypeVar("ReadT")

#: Entries of which rl-zoo3 makes schedules.
SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")

#: Entries that name classes, which rl-zoo3 imports.
CLASSES = ("env_wrapper", "vec_env_wrapper", "callback")


def check_entry(entry: Mapping[str, object], steps_are_given: bool) -> None:
    """
    Check what rl-zoo3 itself reads of an entry; its algorithm checks the rest.

    :param entry: the hyperparameters of one environment, with those of the command line
    :param steps_are_given: whether the command line gives the number of steps, so that the entry's is not read
    :raises UserError: if a value makes no sense; the message names it
    """
    check_count("n_envs", entry.get("n_envs", 1))
    if entry.get("frame_stack") is not None:
        check_count("frame_stack", entry["frame_stack"])
    if not steps_are_given:
        _check_steps(entry.get("n_timesteps"))
    for name in SCHEDULES:
        if name in entry:
            _check_schedule(name, entry[name])
    for name in CLASSES:
        for found in _listed(entry.get(name)):
            check_class(name, found)
    if isinstance(policy := entry.get("policy"), str) and "." in policy:
        check_class("policy", policy)


def check_count(name: str, value: object) -> None:
    """
    Check a whole number.

    :param name: of the entry
    :param value: of the entry
    :raises UserError: if it is none, or below 1
    """
    if not isinstance(value, numbers.Integral) or value < 1:
        raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")


def _check_steps(value: object) -> None:
    """Check the number of steps, which rl-zoo3 turns into an integer."""
    try:
        steps = int(value)  # type: ignore[call-overload]  # whatever the file has
    except (TypeError, ValueError, OverflowError):
        steps = 0
    if steps < 1:
        hint = "; YAML takes 1e6 for a text, write 1000000 or !!float 1e6" if _is_number(value) else ""
        raise UserError(f"n_timesteps must be a number of at least 1, got {value!r}{hint}")


def _check_schedule(name: str, value: object) -> None:
    """Check a number, or the text of which rl-zoo3 makes a schedule."""
    if isinstance(value, (int, float)):
        return
    if isinstance(value, str) and value.count("_") == 1 and _is_number(value.partition("_")[2]):
        return
    hint = "; YAML takes 1e-3 for a text, write 1.0e-3 or !!float 1e-3" if _is_number(value) else ""
    raise UserError(f"{name} must be a number, or 'lin_0.1' for one that falls from 0.1 to 0, got {value!r}{hint}")


def _is_number(value: object) -> bool:
    """Whether a text is a number."""
    try:
        return isinstance(value, str) and float(value) is not None
    except ValueError:
        return False


def _listed(value: object) -> list[object]:
    """The names of classes in an entry: none, one or a list, each alone or with arguments in a dictionary."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [next(iter(one)) if isinstance(one, dict) and len(one) == 1 else one for one in values]


def check_class(name: str, value: object) -> None:
    """
    Check that a class can be imported.

    :param name: of the entry
    :param value: the path of the class; what is no text is a class or an object, or is left to rl-zoo3
    :raises UserError: if there is no such module or class, or several names stand in one dictionary
    """
    if isinstance(value, dict):
        raise UserError(f"{name} must be a class, or a dictionary with one class and its arguments, got {value!r}")
    if not isinstance(value, str):
        return
    module, _, attribute = value.rpartition(".")
    if not module:
        raise UserError(f"{name}: {value} must be written with its module, as in module.{value}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and needs another
        raise UserError(f"{name}: {value} cannot be imported: {error}") from error
    if not hasattr(found, attribute):
        raise UserError(f"{name}: {value} cannot be imported: the module {module} has no {attribute}")


def normalization(read: Callable[[], ReadT], env_id: str, text: object) -> ReadT:
    """
    Let rl-zoo3 read an entry ``normalize``.

    :param read: evaluates it
    :param env_id: the environment whose entry it is
    :param text: the entry
    :return: what it returned
    :raises UserError: if the text cannot be evaluated
    """
    try:
        return read()
    except Exception as error:  # a text of Python can raise anything
        raise UserError(
            f"normalize of {env_id} cannot be evaluated ({type(error).__name__}: {error}): write true, or the arguments of "
            f"VecNormalize as in {{norm_obs: true, norm_reward: false}}, and not {text!r}"
        ) from error


def check_storage(storage: str | None) -> None:
    """
    Check the storage of a study.

    :param storage: the value of ``--storage``, None if it was not given
    :raises UserError: if it is no .log file and SQLAlchemy knows no such database, or its folder is missing
    """
    if storage is None or storage.endswith(".log"):
        return
    try:
        url = make_url(storage)
        url.get_dialect()
    except ArgumentError as error:
        raise UserError(
            f"--storage {storage}: {error}; write study.log for a file, or the address of a database, as in sqlite:///study.db"
        ) from error
    folder = Path(url.database or ".").parent
    if url.get_backend_name() == "sqlite" and not folder.is_dir():
        raise UserError(f"--storage {storage}: there is no folder {folder}")
