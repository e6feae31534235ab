"""
The YAML files of a zoo run, read and written without running code.

The zoo reads its own files with ``yaml.UnsafeLoader``, and evaluates some strings in them as Python. What comes from the Hub
must therefore be reduced to plain data before the zoo sees it, and what goes to the Hub is plain from the start.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any

import yaml

# The settings of a command line that say how an agent was trained; all others (folders, storages, accounts) stay at home.
PUBLIC_ARGUMENTS = (
    "algo",
    "env",
    "env_kwargs",
    "eval_env_kwargs",
    "eval_episodes",
    "eval_freq",
    "gym_packages",
    "hyperparams",
    "n_eval_envs",
    "n_timesteps",
    "num_threads",
    "seed",
    "vec_env",
)
# Strings that the zoo passes to eval().
EVALUATED = ("normalize", "policy_kwargs", "monitor_kwargs", "replay_buffer_kwargs", "replay_buffer_class")
_WRAPPER_KEYS = ("env_wrapper", "vec_env_wrapper", "callback")
_KNOWN_WRAPPERS = re.compile(
    r"(stable_baselines3\.common\.atari_wrappers\.\w+"
    r"|stable_baselines3\.common\.vec_env\.(vec_frame_stack\.)?VecFrameStack"
    r"|(rl_zoo3|sb3_policyopt)\.wrappers\.\w+"
    r"|minigrid\.wrappers\.\w+"
    r"|gymnasium\.wrappers\.(\w+\.)?(ClipAction|ClipReward|DelayObservation|DtypeObservation|FilterObservation|FlattenObservation"
    r"|FrameStackObservation|GrayscaleObservation|MaxAndSkipObservation|NormalizeObservation|NormalizeReward|RescaleAction"
    r"|RescaleObservation|ReshapeObservation|ResizeObservation|StickyAction|TimeAwareObservation|TimeLimit))"
)
_PATH = re.compile(r"(?<![\w.:/])(~?/[\w.+@ -]*[\w.+@-])+/?|[A-Za-z]:\\[\w.+@\\ -]+")
_URL = re.compile(r"\w+://\S+")


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """``SafeLoader`` that also knows the two harmless Python tags in the zoo's files; any other tag is an error."""


_PYTHON = "tag:yaml.org,2002:python/"
_PlainLoader.add_constructor(
    _PYTHON + "object/apply:collections.OrderedDict",
    lambda loader, node: dict(*loader.construct_sequence(node, deep=True)),  # type: ignore[arg-type]
)
_PlainLoader.add_constructor(
    _PYTHON + "tuple",
    lambda loader, node: list(loader.construct_sequence(node, deep=True)),  # type: ignore[arg-type]
)


def load_plain(text: str, name: str) -> dict[str, Any]:
    """
    Read a YAML mapping that contains nothing but plain data.

    :param text: the YAML
    :param name: what to call it in an error
    :return: the mapping
    :raises ValueError: if it is not YAML, not a mapping, or contains a Python object
    """
    try:
        mapping = yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} is not plain YAML: {reason}") from error
    if mapping is None:
        return {}
    if not isinstance(mapping, dict):
        raise ValueError(f"{name} is not a YAML mapping")
    return mapping


def dump_plain(mapping: Mapping[str, Any]) -> str:
    """
    Write a mapping as YAML that any loader reads.

    :param mapping: plain data
    :return: the YAML, keys in their order
    """
    return str(yaml.safe_dump(_plain(mapping), sort_keys=False, allow_unicode=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def check_config(config: Mapping[str, Any], name: str) -> None:
    """
    Make sure that the zoo can use a ``config.yml`` without running code that its author chose.

    :param config: hyperparameters in the zoo's form
    :param name: what to call them in an error
    :raises ValueError: if a string that the zoo evaluates is more than a literal, or a wrapper is not a known one
    """
    for key in EVALUATED:
        if isinstance(config.get(key), str) and not is_literal(config[key]):
            raise ValueError(f"{key} in {name} is Python code that is not a plain literal: {config[key]!r}")
    for key in _WRAPPER_KEYS:
        for wrapper, _ in wrappers(config.get(key)):
            if not _KNOWN_WRAPPERS.fullmatch(wrapper):
                raise ValueError(f"{key} in {name} names {wrapper}, which is not one of the known wrappers")


def wrappers(entry: Any) -> list[tuple[str, dict[str, Any]]]:
    """
    Read the zoo's ``env_wrapper`` entry.

    :param entry: a dotted name, a mapping ``{name: arguments}``, a list of these, or None
    :return: dotted names with their keyword arguments, innermost first
    """
    pairs: list[tuple[str, dict[str, Any]]] = []
    for item in entry if isinstance(entry, list) else [entry]:
        if isinstance(item, Mapping):
            pairs.extend((str(name), dict(arguments or {})) for name, arguments in item.items())
        elif item is not None:
            pairs.append((str(item), {}))
    return pairs


def is_literal(source: str) -> bool:
    """
    Tell whether a Python expression only spells out data.

    :param source: an expression such as ``dict(net_arch=[64], activation_fn=nn.ReLU)``
    :return: True if it consists of literals, ``dict(…)`` with keywords, and names of ``torch.nn`` or ``torch.optim``
    """
    try:
        return _is_literal_node(ast.parse(source.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_literal_node(node: "ast.AST | None") -> bool:
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return isinstance(node.operand, ast.Constant)
    if isinstance(node, (ast.List, ast.Tuple)):
        return all(_is_literal_node(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        return all(_is_literal_node(item) for item in [*node.keys, *node.values])
    if isinstance(node, ast.Attribute):
        return not node.attr.startswith("_") and ast.unparse(node.value) in ("nn", "th.nn", "th.optim", "torch.nn")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return all(keyword.arg is not None and _is_literal_node(keyword.value) for keyword in node.keywords)
    return False


def without_private_facts(value: Any) -> Any:
    """
    Remove what tells about the machine: folders are cut from paths, and addresses (storages, remotes) are dropped.

    :param value: JSON-like data
    :return: the same with every string cleaned
    """
    if isinstance(value, Mapping):
        return {key: without_private_facts(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_private_facts(item) for item in value]
    if not isinstance(value, str):
        return value
    return _PATH.sub(lambda match: _last_component(match.group()), _URL.sub("(address removed)", value))


def _last_component(path: str) -> str:
    return (PureWindowsPath(path) if "\\" in path else PurePath(path)).name
