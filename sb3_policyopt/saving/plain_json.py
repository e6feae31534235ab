"""
Values as plain JSON: what of an agent can be written without pickling, and read without running code.

Numbers, strings, containers, arrays, Gymnasium spaces, the schedules of Stable-Baselines3, and classes *by name* out of a
fixed set (``torch.nn``, ``torch.optim``, the policies, extractors and buffers of Stable-Baselines3 and sb3-contrib, this
package's policies). What JSON has no form for becomes an object with a tag: ``{"$class": "torch.nn.Tanh"}``. Anything else is
recorded by its name alone, and cannot be decoded.
"""

import importlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_policyopt.errors import PickleRequiredError

Tagged: TypeAlias = dict[str, Any]
"""A JSON object with a tag, which determines its other keys and their types."""

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
_MODULES: dict[str, tuple[str, ...]] = {
    "sb3_contrib.common.maskable.policies": (
        "MaskableActorCriticPolicy",
        "MaskableActorCriticCnnPolicy",
        "MaskableMultiInputActorCriticPolicy",
    ),
    "sb3_contrib.common.recurrent.policies": (
        "RecurrentActorCriticPolicy",
        "RecurrentActorCriticCnnPolicy",
        "RecurrentMultiInputActorCriticPolicy",
    ),
    "sb3_contrib.common.maskable.buffers": ("MaskableRolloutBuffer", "MaskableDictRolloutBuffer"),
    "sb3_contrib.common.recurrent.buffers": ("RecurrentRolloutBuffer", "RecurrentDictRolloutBuffer"),
    "sb3_policyopt.policies": (
        "RecurrentPolicy",
        "RecurrentCnnPolicy",
        "RecurrentMultiInputPolicy",
        "MaskableRecurrentPolicy",
        "MaskableRecurrentCnnPolicy",
        "MaskableRecurrentMultiInputPolicy",
    ),
}
"""Classes of policies with masks or memory, and of their buffers, by module; they need sb3-contrib."""
_NEEDING_CONTRIB = {
    f"{module.partition('.')[0]}.{name}": (module, name) for module, names in _MODULES.items() for name in names
}
_SCHEDULES: dict[type, tuple[str, ...]] = {
    FloatSchedule: ("value_schedule",),
    ConstantSchedule: ("val",),
    LinearSchedule: ("start", "end", "end_fraction"),
}


def class_names() -> frozenset[str]:
    """
    List the classes that a description may name, but for those of ``torch.nn`` and ``torch.optim``.

    :return: their names, each with its module
    """
    of_sb3 = {f"{cls.__module__}.{cls.__name__}" for cls in _CLASSES.values()}
    return frozenset(of_sb3 | {f"{module}.{name}" for module, names in _MODULES.items() for name in names})


def encode(value: object) -> object:
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
        return _encode_dict(cast(Mapping[object, object], value))
    if type(value) is np.ndarray and value.dtype.kind in "biuf":
        return {"$array": encode(value.tolist()), "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, spaces.Space):
        return _encode_space(value)
    if isinstance(value, type):
        return _encode_class(value)
    return _encode_schedule(value)


def decode(value: object) -> Any:
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
            f"unknown tag {tag!r} in the description: it was written by a newer version of sb3-policyopt, or damaged"
        )
    return _DECODERS[tag](value)


def _encode_dict(value: Mapping[object, object]) -> Tagged:
    plain = {key: encode(item) for key, item in value.items() if isinstance(key, str) and not key.startswith("$")}
    if len(plain) == len(value):
        return plain
    return {"$dict": [[encode(key), encode(item)] for key, item in value.items()]}


def _bound(bound: np.ndarray) -> object:
    """The bound of a Box as one number where all its elements are equal (images have 28224 of them)."""
    constant = bound.size > 0 and bool((bound == bound.flat[0]).all())
    return encode(bound.flat[0] if constant else bound)


def _encode_space(space: spaces.Space[object]) -> Tagged:
    kind: Tagged = {"$space": type(space).__name__}
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


def _decode_space(value: Tagged) -> spaces.Space[object]:
    kind = value["$space"]
    if kind == "Box":
        dtype, shape = _numeric_dtype(value["dtype"]), tuple(value["shape"])
        low, high = (np.broadcast_to(np.asarray(decode(value[key]), dtype=dtype), shape) for key in ("low", "high"))
        return spaces.Box(low.copy(), high.copy(), shape=shape, dtype=dtype.type)
    # gymnasium < 1.2 has no Discrete(dtype=…), so that only an unusual dtype is passed on.
    arguments: Tagged = {} if value.get("dtype", "int64") == "int64" else {"dtype": _numeric_dtype(value["dtype"]).type}
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
    raise ValueError(f"unknown space {kind!r} in the description")


def _numeric_dtype(name: str) -> np.dtype:
    dtype = np.dtype(name)
    if dtype.kind not in "biuf":
        raise ValueError(f"dtype {name!r} in the description is not a number type")
    return dtype


def _encode_class(cls: type) -> Tagged:
    for module, base in ((th.nn, th.nn.Module), (th.optim, th.optim.Optimizer)):
        if issubclass(cls, base) and getattr(module, cls.__name__, None) is cls:
            return {"$class": f"{module.__name__}.{cls.__name__}"}
    if cls.__name__ in _MODULES.get(cls.__module__, ()):
        return {"$class": f"{cls.__module__.partition('.')[0]}.{cls.__name__}"}
    name = f"stable_baselines3.{cls.__name__}"
    return {"$class": name} if _CLASSES.get(name) is cls else _pickle_only(cls)


def _decode_class(value: Tagged) -> type:
    name = value["$class"]
    module, _, attribute = name.rpartition(".")
    cls = _needing_contrib(name) if name in _NEEDING_CONTRIB else _CLASSES.get(name)
    if module == "torch.nn":
        cls = getattr(th.nn, attribute, None)
    elif module == "torch.optim":
        cls = getattr(th.optim, attribute, None)
    allowed = (th.nn.Module, th.optim.Optimizer, RolloutBuffer)
    if not (isinstance(cls, type) and issubclass(cls, allowed)):
        raise ValueError(f"{name!r} in the description is none of the classes that a description may name")
    return cls


def _needing_contrib(name: str) -> type:
    """
    Import a class that needs sb3-contrib.

    :param name: in ``_NEEDING_CONTRIB``
    :return: the class
    :raises PickleRequiredError: if sb3-contrib is not installed
    """
    module, attribute = _NEEDING_CONTRIB[name]
    try:
        return cast(type, getattr(importlib.import_module(module), attribute))
    except ModuleNotFoundError as error:
        raise PickleRequiredError(f"{name}, which needs sb3-contrib: pip install 'sb3-policyopt[contrib]'") from error


def _encode_schedule(value: object) -> Tagged:
    if type(value).__name__ == "SimpleLinearSchedule" and hasattr(value, "initial_value"):  # rl-zoo3's: p ↦ p · initial_value
        value = LinearSchedule(start=value.initial_value, end=0.0, end_fraction=1.0)
    if type(value) not in _SCHEDULES:
        return _pickle_only(value)
    return {"$schedule": type(value).__name__} | {name: encode(getattr(value, name)) for name in _SCHEDULES[type(value)]}


def _decode_schedule(value: Tagged) -> Callable[[float], float]:
    for cls, names in _SCHEDULES.items():
        if cls.__name__ == value["$schedule"]:
            return cast(Callable[[float], float], cls(**{name: decode(value[name]) for name in names}))
    raise ValueError(f"unknown schedule {value['$schedule']!r} in the description")


def _pickle_only(value: object) -> Tagged:
    named = value if hasattr(value, "__qualname__") else type(value)
    return {"$pickle_only": f"{named.__module__}.{named.__qualname__}"}


def _refuse(value: Tagged) -> NoReturn:
    raise PickleRequiredError(value["$pickle_only"])


_DECODERS: dict[str, Callable[[Tagged], object]] = {
    "$float": lambda value: float(value["$float"]),
    "$tuple": lambda value: tuple(decode(value["$tuple"])),
    "$dict": lambda value: {decode(key): decode(item) for key, item in value["$dict"]},
    "$array": lambda value: np.array(decode(value["$array"]), dtype=_numeric_dtype(value["dtype"])).reshape(value["shape"]),
    "$space": _decode_space,
    "$class": _decode_class,
    "$schedule": _decode_schedule,
    "$pickle_only": _refuse,
}
