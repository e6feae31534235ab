"""Classes in hyperparameters: as Python source that rl-zoo3 evaluates, and which of them only their author has."""

import ast
import re
from collections.abc import Mapping

import torch as th
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from sb3_policyopt.hub.wrappers import is_plain, plain
from sb3_policyopt.saving.plain_json import class_names

_CALL = re.compile(r"""get_class_by_name\(["']([^"']+)["']\)""")


def dotted_name(named: object) -> str:
    """
    Write the name of a class as ``get_class_by_name`` of rl-zoo3 takes it.

    :param named: a class or a function
    :return: its module and name; of what a function defines the name has ``<locals>``, and cannot be imported
    """
    return f"{named.__module__}.{getattr(named, '__qualname__', '')}"


def python_source(value: object) -> str:
    """
    Write policy arguments as the expression that rl-zoo3 evaluates.

    :param value: literals, containers and classes
    :return: Python source; classes as ``nn.ReLU``, ``th.optim.Adam`` or ``get_class_by_name("module.Class")``
    """
    if isinstance(value, dict):
        if all(isinstance(key, str) and key.isidentifier() for key in value):
            return f"dict({', '.join(f'{key}={python_source(item)}' for key, item in value.items())})"
        return "{" + ", ".join(f"{key!r}: {python_source(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(python_source, value))}]"
    if is_plain(value):
        return repr(plain(value))
    if not hasattr(value, "__qualname__"):
        return repr(value)
    name = str(getattr(value, "__name__", ""))
    for prefix, module in (("nn", th.nn), ("th.optim", th.optim)):
        if getattr(module, name, None) is value:
            return f"{prefix}.{name}"
    return name if value is RMSpropTFLike else f'get_class_by_name("{dotted_name(value)}")'


def own_classes(config: Mapping[str, object]) -> list[str]:
    """
    List the classes that come neither from torch nor from the packages whose agents are loaded here.

    :param config: hyperparameters in rl-zoo3's form
    :return: their dotted names
    """
    policy = config.get("policy")
    names = _CALL.findall(str(config.get("policy_kwargs", "")))
    names += [policy] if isinstance(policy, str) and "." in policy else []
    known = class_names()
    return [name for name in dict.fromkeys(names) if name not in known and not name.startswith("torch.")]


def is_expression(source: object) -> bool:
    """
    Whether rl-zoo3 can evaluate an entry: objects without a form in Python source make it no expression.

    :param source: the entry; only a string is evaluated
    :return: False for what Python cannot parse
    """
    try:
        return not isinstance(source, str) or bool(ast.parse(source.strip(), mode="eval"))
    except (SyntaxError, ValueError):
        return False
