"""
Saved agents that load without unpickling anything.

Stable-Baselines3 stores an agent as a zip of PyTorch tensors and one JSON file, ``data``, in which everything that is not
plain JSON (spaces, schedules, classes) is a pickle: loading a stranger's zip runs the stranger's code.
Our zips carry the same attributes a second time, as plain JSON, in the entry ``policyopt.json``:

- :func:`write_description` adds the entry to a finished zip; stock Stable-Baselines3 ignores it;
- :func:`without_pickles` turns a zip into a copy without pickles, which ``load`` of Stable-Baselines3 reads as any other;
- :class:`SelfDescribing` gives both to an algorithm: ``save()``, and ``load(…, safe=True)``.

Only values of known kinds can be described: numbers, strings, containers, arrays, Gymnasium spaces, the schedules of
Stable-Baselines3, and classes *by name* out of a fixed set (``torch.nn``, ``torch.optim``, the policies, extractors and
buffers of Stable-Baselines3). Anything else is recorded by its name alone, and a safe load refuses it with a sentence.
"""

import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_policyopt.recording import installed_versions

DESCRIPTION = "policyopt.json"
FORMAT = 1

# What learn() makes anew, and a path of the author's machine: none of it belongs into a description.
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
_CLASSES: dict[str, type] = {
    f"stable_baselines3.{cls.__name__}": cls
    for cls in (
        ActorCriticPolicy,
        ActorCriticCnnPolicy,
        MultiInputActorCriticPolicy,
        FlattenExtractor,
        NatureCNN,
        CombinedExtractor,
        RolloutBuffer,
        DictRolloutBuffer,
        RMSpropTFLike,
    )
}
_SCHEDULES: dict[type, tuple[str, ...]] = {
    FloatSchedule: ("value_schedule",),
    ConstantSchedule: ("val",),
    LinearSchedule: ("start", "end", "end_fraction"),
}

AlgorithmT = TypeVar("AlgorithmT", bound=BaseAlgorithm)
PathOrFile = str | Path | io.BufferedIOBase


class PickleRequiredError(ValueError):
    """A saved agent cannot be loaded without unpickling parts of it, that is, without running code that it contains."""


# -- plain JSON <-> values ------------------------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """
    Turn a value into plain JSON, with a one-key tag such as ``{"$class": …}`` where JSON has no such kind.

    :param value: any Python value
    :return: JSON that :func:`decode` turns back into an equal value; ``{"$pickle_only": name}`` for an unknown kind
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if np.isfinite(value) else {"$float": repr(value)}
    if type(value) is list:
        return [encode(item) for item in value]
    if type(value) is tuple:
        return {"$tuple": [encode(item) for item in value]}
    if type(value) in (dict, OrderedDict):
        return _encode_dict(value)
    if type(value) is np.ndarray and value.dtype.kind in "biuf":
        return {"$array": encode(value.tolist()), "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, spaces.Space):
        return _encode_space(value)
    if isinstance(value, type):
        return _encode_class(value)
    return _encode_schedule(value)


def decode(value: Any) -> Any:
    """
    Inverse of :func:`encode`. Nothing is imported and nothing outside the known kinds is called.

    :param value: plain JSON
    :return: the value described
    :raises PickleRequiredError: if the value could not be described when it was saved
    :raises ValueError: if a tag is unknown
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: decode(item) for key, item in value.items()}
    if tag not in _DECODERS:
        raise ValueError(
            f"unknown tag {tag!r} in {DESCRIPTION}: it was written by a newer version of sb3-policyopt, or damaged"
        )
    return _DECODERS[tag](value)


def _encode_dict(value: Mapping[Any, Any]) -> Any:
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: encode(item) for key, item in value.items()}
    return {"$dict": [[encode(key), encode(item)] for key, item in value.items()]}


def _bound(bound: np.ndarray) -> Any:
    """The bound of a Box as one number where all its elements are equal (images have 28224 of them)."""
    constant = bound.size > 0 and bool((bound == bound.flat[0]).all())
    return encode(bound.flat[0] if constant else bound)


def _encode_space(space: "spaces.Space[Any]") -> Any:
    kind: dict[str, Any] = {"$space": type(space).__name__}
    if type(space) is spaces.Box:
        return kind | {
            "low": _bound(space.low),
            "high": _bound(space.high),
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    if type(space) is spaces.Discrete:
        return kind | {"n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if type(space) is spaces.MultiDiscrete:
        start = getattr(space, "start", np.zeros_like(space.nvec))
        return kind | {"nvec": encode(space.nvec), "start": encode(start), "dtype": str(space.dtype)}
    if type(space) is spaces.MultiBinary:
        return kind | {"n": encode(space.n)}
    if type(space) is spaces.Dict:  # a list of pairs: the order of the keys is part of the policy
        return kind | {"spaces": [[key, encode(item)] for key, item in space.spaces.items()]}
    return _pickle_only(type(space))


def _decode_space(value: dict[str, Any]) -> "spaces.Space[Any]":
    kind = value["$space"]
    if kind == "Box":
        dtype, shape = _numeric_dtype(value["dtype"]), tuple(value["shape"])
        low, high = (np.broadcast_to(np.asarray(decode(value[key]), dtype=dtype), shape) for key in ("low", "high"))
        return spaces.Box(low.copy(), high.copy(), shape=shape, dtype=dtype.type)
    # gymnasium < 1.2 has no Discrete(dtype=…), so that only an unusual dtype is passed on.
    arguments: dict[str, Any] = (
        {} if value.get("dtype", "int64") == "int64" else {"dtype": _numeric_dtype(value["dtype"]).type}
    )
    if kind == "Discrete":
        return spaces.Discrete(value["n"], start=value["start"], **arguments)
    if kind == "MultiDiscrete":
        start = decode(value["start"])
        if start.any():
            arguments["start"] = start
        return spaces.MultiDiscrete(decode(value["nvec"]), **arguments)
    if kind == "MultiBinary":
        return spaces.MultiBinary(decode(value["n"]))
    if kind == "Dict":
        return spaces.Dict(OrderedDict((key, decode(item)) for key, item in value["spaces"]))
    raise ValueError(f"unknown space {kind!r} in {DESCRIPTION}")


def _numeric_dtype(name: str) -> "np.dtype[Any]":
    dtype = np.dtype(name)
    if dtype.kind not in "biuf":
        raise ValueError(f"dtype {name!r} in {DESCRIPTION} is not a number type")
    return dtype


def _encode_class(cls: type) -> Any:
    for module, base in ((th.nn, th.nn.Module), (th.optim, th.optim.Optimizer)):
        if issubclass(cls, base) and getattr(module, cls.__name__, None) is cls:
            return {"$class": f"{module.__name__}.{cls.__name__}"}
    name = f"stable_baselines3.{cls.__name__}"
    return {"$class": name} if _CLASSES.get(name) is cls else _pickle_only(cls)


def _decode_class(value: dict[str, Any]) -> type:
    name = value["$class"]
    module, _, attribute = name.rpartition(".")
    cls = _CLASSES.get(name)
    if module == "torch.nn":
        cls = getattr(th.nn, attribute, None)
    elif module == "torch.optim":
        cls = getattr(th.optim, attribute, None)
    allowed = (th.nn.Module, th.optim.Optimizer, RolloutBuffer)
    if not (isinstance(cls, type) and issubclass(cls, allowed)):
        raise ValueError(f"{name!r} in {DESCRIPTION} is none of the classes that a description may name")
    return cls


def _encode_schedule(value: Any) -> Any:
    if type(value).__name__ == "SimpleLinearSchedule" and hasattr(value, "initial_value"):  # rl-zoo3's: p ↦ p · initial_value
        value = LinearSchedule(start=value.initial_value, end=0.0, end_fraction=1.0)
    if type(value) not in _SCHEDULES:
        return _pickle_only(value)
    return {"$schedule": type(value).__name__} | {name: encode(getattr(value, name)) for name in _SCHEDULES[type(value)]}


def _decode_schedule(value: dict[str, Any]) -> Callable[[float], float]:
    for cls, names in _SCHEDULES.items():
        if cls.__name__ == value["$schedule"]:
            return cast(Callable[[float], float], cls(**{name: decode(value[name]) for name in names}))
    raise ValueError(f"unknown schedule {value['$schedule']!r} in {DESCRIPTION}")


def _pickle_only(value: Any) -> dict[str, str]:
    named = value if hasattr(value, "__qualname__") else type(value)
    return {"$pickle_only": f"{named.__module__}.{named.__qualname__}"}


def _refuse(value: dict[str, Any]) -> Any:
    raise PickleRequiredError(value["$pickle_only"])


_DECODERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "$float": lambda value: float(value["$float"]),
    "$tuple": lambda value: tuple(decode(value["$tuple"])),
    "$dict": lambda value: {decode(key): decode(item) for key, item in value["$dict"]},
    "$array": lambda value: np.array(decode(value["$array"]), dtype=_numeric_dtype(value["dtype"])).reshape(value["shape"]),
    "$space": _decode_space,
    "$class": _decode_class,
    "$schedule": _decode_schedule,
    "$pickle_only": _refuse,
}


# -- the zip --------------------------------------------------------------------------------------------------------------


def describe(model: BaseAlgorithm, names: "list[str] | None" = None) -> dict[str, Any]:
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
    policy = next((alias for alias, cls in model.policy_aliases.items() if cls is model.policy_class), None)
    return {
        "format": FORMAT,
        "algorithm": type(model).__name__,
        "policy": policy,
        "versions": installed_versions(),
        "attributes": {name: encode(getattr(model, name)) for name in names if name not in _TRANSIENT},
    }


def write_description(file: "str | Path | IO[bytes]", model: BaseAlgorithm) -> None:
    """
    Add ``policyopt.json`` to a zip that ``model.save()`` has just written.

    :param file: the zip: a path, or a file open for reading and writing, such as a ``BytesIO``
    :param model: the agent that was saved
    """
    with zipfile.ZipFile(file, "a") as archive:
        names = list(json.loads(archive.read("data")))  # whatever save(exclude=…, include=…) decided
        archive.writestr(DESCRIPTION, json.dumps(describe(model, names), indent=1, allow_nan=False))


def read_description(path: PathOrFile) -> dict[str, Any]:
    """
    Read the description of a saved agent.

    :param path: the zip: a path, with or without ``.zip``, or an open file
    :return: the JSON of ``policyopt.json``, not decoded
    :raises PickleRequiredError: if the zip has none
    :raises ValueError: if the file is no zip
    """
    with _open_zip(path) as archive:
        return _read_description(archive, _name(path))


def without_pickles(path: PathOrFile, custom_objects: "dict[str, Any] | None" = None) -> tuple[io.BytesIO, dict[str, Any]]:
    """
    Copy a saved agent without its pickles.

    The copy has the tensors, and the names of the attributes in place of their pickles; their values, rebuilt from
    ``policyopt.json``, are returned beside it. Together they are what ``load`` of Stable-Baselines3 needs::

        copy, attributes = without_pickles("agent.zip")
        model = PPO.load(copy, custom_objects=attributes)   # unpickles nothing

    :param path: the zip: a path, with or without ``.zip``, or an open file
    :param custom_objects: values for attributes by name; what is given here is not read from the zip
    :return: the copy, and ``custom_objects`` completed
    :raises PickleRequiredError: if something that is needed exists only as a pickle; the message says what, and what to do
    :raises ValueError: if the file is no zip, or its description is damaged
    """
    if tuple(int(part) for part in th.__version__.split(".")[:2]) < (2, 6):
        # CVE-2025-32434: until then torch.load(weights_only=True) could be made to run code.
        raise ValueError(f"safe loading needs PyTorch 2.6 or newer, and {th.__version__} is installed: pip install -U torch")
    given, name = custom_objects or {}, _name(path)
    objects: dict[str, Any] = {}
    refused: list[str] = []
    with _open_zip(path) as archive:
        for key, value in _read_description(archive, name)["attributes"].items():
            try:
                objects[key] = given[key] if key in given else decode(value)
            except PickleRequiredError as error:
                refused.append(f"{key} ({error})")
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

    def save(self, path: PathOrFile, exclude: "Iterable[str] | None" = None, include: "Iterable[str] | None" = None) -> None:
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
        env: "GymEnv | None" = None,
        device: "th.device | str" = "auto",
        custom_objects: "dict[str, Any] | None" = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        safe: bool = False,
        **kwargs: Any,
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
        if safe:
            path, custom_objects = without_pickles(path, custom_objects)
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)


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


def _read_description(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    if DESCRIPTION not in archive.namelist():
        raise PickleRequiredError(
            f"{name} has no {DESCRIPTION}, so it was not saved by sb3-policyopt and can only be unpickled, which runs "
            "whatever code it contains; if you trust its author, load it with safe=False"
        )
    try:
        description = json.loads(archive.read(DESCRIPTION))
        supported = description["format"] == FORMAT and isinstance(description["attributes"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{DESCRIPTION} in {name} is damaged: {error}") from error
    if not supported:
        raise ValueError(f"{DESCRIPTION} in {name} has format {description['format']}, this version reads {FORMAT}")
    return cast(dict[str, Any], description)
