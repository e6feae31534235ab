"""
Saved agents that load without unpickling anything.

Stable-Baselines3 stores an agent as a zip of PyTorch tensors and one JSON file, ``data``, in which everything that is not
plain JSON (spaces, schedules, classes) is a pickle: loading a stranger's zip runs the stranger's code.
Our zips carry the same attributes a second time, as plain JSON (:mod:`sb3_policyopt.saving.plain_json`), in the entry
``policyopt.json``:

- :func:`write_description` adds the entry to a finished zip; stock Stable-Baselines3 ignores it;
- :func:`without_pickles` turns a zip into a copy without pickles, which ``load`` of Stable-Baselines3 reads as any other;
- :class:`SelfDescribing` gives both to an algorithm: ``save()``, and ``load(…, safe=True)``.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar, TypedDict, TypeVar, cast

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.type_aliases import GymEnv

from sb3_policyopt.errors import PickleRequiredError
from sb3_policyopt.saving.plain_json import decode, encode
from sb3_policyopt.saving.provenance import installed_versions

DESCRIPTION = "policyopt.json"
FORMAT = 1

# What learn() makes anew, and a path on the author's machine: neither belongs in a description.
_TRANSIENT = frozenset(
    {
        "_last_obs",
        "_last_episode_starts",
        "_last_original_obs",
        "ep_info_buffer",
        "ep_success_buffer",
        "start_time",
        "tensorboard_log",
    }
)
# What a loaded agent gets from the one who loads it: a file that names one of these was not written by this package.
# An "env" of a file would be made by Gymnasium, which imports the module that its id names.
_NEVER_IN_A_FILE = _TRANSIENT | {
    "env",
    "eval_env",
    "device",
    "policy",
    "rollout_buffer",
    "replay_buffer",
    "_vec_normalize_env",
    "_logger",
}
AlgorithmT = TypeVar("AlgorithmT", bound="SelfDescribing")
PathOrFile = str | Path | io.BufferedIOBase


class Description(TypedDict):
    """
    The content of ``policyopt.json``.

    :param format: version of the format
    :param algorithm: name of the class
    :param policy: alias of the policy's class, such as "MlpPolicy"; None if it has none
    :param versions: by distribution
    :param attributes: encoded by :mod:`sb3_policyopt.saving.plain_json`
    """

    format: int
    algorithm: str
    policy: str | None
    versions: dict[str, str]
    attributes: dict[str, object]


def policy_alias(model: BaseAlgorithm) -> str | None:
    """
    Look up the name by which a constructor takes the policy of an agent.

    :param model: the agent
    :return: such as "MlpPolicy", None for a class without an alias
    """
    own = (alias for alias, cls in model.policy_aliases.items() if cls is model.policy_class)
    named: Callable[[type], str | None] = getattr(model, "name_of_policy", lambda policy_class: None)
    return next(own, None) or named(model.policy_class)


def describe(model: BaseAlgorithm, names: list[str] | None = None) -> Description:
    """
    Describe an agent in plain JSON: what its zip holds, but for the tensors.

    :param model: the agent
    :param names: the attributes to describe; by default those which ``model.save()`` stores
    :return: the description, as it stands in ``policyopt.json``
    """
    if names is None:
        state_dicts, variables = model._get_torch_save_params()
        tensors = {name.split(".")[0] for name in state_dicts + variables}
        names = [name for name in vars(model) if name not in tensors.union(model._excluded_save_params())]
    return {
        "format": FORMAT,
        "algorithm": type(model).__name__,
        "policy": policy_alias(model),
        "versions": installed_versions(),
        "attributes": {name: encode(getattr(model, name)) for name in names if name not in _TRANSIENT},
    }


def write_description(file: str | Path | IO[bytes], model: BaseAlgorithm) -> None:
    """
    Add ``policyopt.json`` to a zip that ``model.save()`` has just written.

    :param file: the zip: a path, or a file open for reading and writing, such as a ``BytesIO``
    :param model: the agent that was saved
    """
    with zipfile.ZipFile(file, "a") as archive:
        names = list(json.loads(archive.read("data")))  # whatever save(exclude=…, include=…) decided
        archive.writestr(DESCRIPTION, json.dumps(describe(model, names), indent=1, allow_nan=False))


def read_description(path: PathOrFile) -> dict[str, object]:
    """
    Read the description of a saved agent.

    :param path: the zip: a path, with or without ``.zip``, or an open file
    :return: the JSON of ``policyopt.json``, not decoded
    :raises PickleRequiredError: if the zip has none
    :raises ValueError: if the file is no zip
    """
    with _open_zip(path) as archive:
        return dict(_read_description(archive, _name(path)))


def without_pickles(
    path: PathOrFile, custom_objects: Mapping[str, object] | None = None
) -> tuple[io.BytesIO, dict[str, object]]:
    """
    Copy a saved agent without its pickles.

    The copy has the tensors, and the names of the attributes in place of their pickles; their values, rebuilt from
    ``policyopt.json``, are returned beside it. Together they are what ``load`` of Stable-Baselines3 needs::

        copy, attributes = without_pickles("agent.zip")
        model = PPO.load(copy, custom_objects=attributes)   # unpickles nothing

    :param path: the zip: a path, with or without ``.zip``, or an open file
    :param custom_objects: values for attributes by name; what is given here is not read from the zip
    :return: the copy, and ``custom_objects`` completed
    :raises PickleRequiredError: if something that is needed exists only as a pickle; the message names it and the alternatives
    :raises ValueError: if the file is no zip, or its description is damaged or sets what no saved agent holds
    """
    given, name = custom_objects or {}, _name(path)
    objects: dict[str, object] = {}
    refused: list[str] = []
    with _open_zip(path) as archive:
        for key, value in _read_description(archive, name)["attributes"].items():
            if key not in given and (key in _NEVER_IN_A_FILE or callable(getattr(BaseAlgorithm, key, None))):
                raise ValueError(
                    f"{DESCRIPTION} in {name} sets {key!r}, which no saved agent holds: the file was changed by someone, do "
                    "not trust it"
                )
            try:
                objects[key] = given[key] if key in given else decode(value)
            except PickleRequiredError as error:
                refused.append(f"{key} ({error})")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{DESCRIPTION} in {name} is damaged, at {key}: {error!r}") from error
        if refused:
            raise PickleRequiredError(
                f"{name} holds what only a pickle can describe: {', '.join(refused)}; give a value of your own with "
                "custom_objects={name: value}, or, if you trust the author of the file, load it with safe=False"
            )
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w") as stripped:
            stripped.writestr("data", json.dumps(dict.fromkeys(objects)))
            for entry in archive.namelist():
                if entry.endswith(".pth") or entry == "system_info.txt":
                    stripped.writestr(entry, archive.read(entry))
    copy.seek(0)
    return copy, objects


class SelfDescribing(BaseAlgorithm):
    """
    Mix-in for algorithms of Stable-Baselines3: what they save describes itself, and can be loaded without unpickling::

        class PPO(SelfDescribing, OnPolicyAlgorithm): ...
    """

    meant_by_stock: ClassVar[Mapping[str, object]] = {}
    """Attributes that stock does not have, with what its zips mean by that, which is not the default here."""

    def save(self, path: PathOrFile, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save the agent, as Stable-Baselines3 does, and its description beside the pickles.

        :param path: a path (``.zip`` is added if it has no suffix), or a file open for writing
        :param exclude: names of attributes to leave out
        :param include: names of attributes to store although they are left out by default
        """
        buffer = io.BytesIO()  # a zip gets a further entry only where it can be read, too: not every file can
        super().save(buffer, exclude, include)
        write_description(buffer, self)
        file = open_path(path, "w", verbose=0, suffix="zip")
        file.write(buffer.getbuffer())
        if isinstance(path, (str, Path)):
            file.close()

    @classmethod
    def load(
        cls: type[AlgorithmT],
        path: PathOrFile,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        safe: bool = False,
        **kwargs: object,
    ) -> AlgorithmT:
        """
        Load an agent.

        :param path: the zip: a path, with or without ``.zip``, or an open file
        :param env: the environment to attach; it may be None to predict only
        :param device: where PyTorch runs the agent
        :param custom_objects: values for attributes by name, instead of the stored ones
        :param print_system_info: print the versions with which the agent was saved
        :param force_reset: reset the environment before training goes on
        :param safe: unpickle nothing, so that a stranger's file runs no code of theirs
        :param kwargs: attributes to change
        :return: the agent
        :raises PickleRequiredError: if ``safe``, and something that is needed exists only as a pickle
        :raises ValueError: if the file is no zip, or ``env`` has other spaces
        """
        saved_by = _algorithm_of(path)
        zip_file = path
        if safe:
            zip_file, custom_objects = without_pickles(path, custom_objects)
        elif saved_by is None:
            kwargs = {**cls.meant_by_stock, **kwargs}
        try:
            return super().load(zip_file, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        except (ValueError, TypeError) as error:
            if saved_by in (None, "", cls.__name__) or type(error) not in (ValueError, TypeError):
                raise
            by = f"{saved_by}, and not by {cls.__name__}: {error}; take {saved_by}.load"
            raise type(error)(f"{_name(path)} was saved by {by}") from error


def _algorithm_of(path: PathOrFile) -> str | None:
    """The class that saved a zip: None if another package did, "" if the file cannot be read, of which the loader tells."""
    start = path.tell() if hasattr(path, "tell") else None
    try:
        with _open_zip(path) as archive:
            if DESCRIPTION not in archive.namelist():
                return None
            return str(json.loads(archive.read(DESCRIPTION)).get("algorithm", ""))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ""
    finally:
        if start is not None and not isinstance(path, (str, Path)):
            path.seek(start)


def _name(path: PathOrFile) -> str:
    return str(path) if isinstance(path, (str, Path)) else "the file"


@contextmanager
def _open_zip(path: PathOrFile) -> Iterator[zipfile.ZipFile]:
    file = open_path(path, "r", verbose=0, suffix="zip")
    try:
        with zipfile.ZipFile(cast(IO[bytes], file)) as archive:
            yield archive
    except zipfile.BadZipFile as error:
        raise ValueError(f"{_name(path)} is not a zip file: it is damaged, or was not saved by model.save()") from error
    finally:
        if isinstance(path, (str, Path)):
            file.close()


def _read_description(archive: zipfile.ZipFile, name: str) -> Description:
    if DESCRIPTION not in archive.namelist():
        raise PickleRequiredError(
            f"{name} has no {DESCRIPTION}, so it was not saved by sb3-policyopt and can only be unpickled, which runs "
            "whatever code it contains; if you trust its author, load it with safe=False"
        )
    try:
        description = json.loads(archive.read(DESCRIPTION))
        supported = description["format"] == FORMAT and isinstance(description["attributes"], dict)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{DESCRIPTION} in {name} is damaged: {error}") from error
    if not supported:
        raise ValueError(f"{DESCRIPTION} in {name} has format {description['format']}, this version reads {FORMAT}")
    return cast(Description, description)
