"""
Checks of the YAML files of a run: no code in what is downloaded, no private facts in what is published.

rl-zoo3 reads its files with ``yaml.UnsafeLoader``, and evaluates some strings in them as Python. Files from the Hub are
therefore reduced to plain data before rl-zoo3 reads them.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import PurePath, PureWindowsPath

from sb3_policyopt.saving.plain_json import class_names

Wrappers = list[tuple[str, dict[str, object]]]
"""Dotted names of wrappers with their keyword arguments, innermost first."""

# The arguments of a training that are published; others (folders, storages, accounts) are not.
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
# Strings that rl-zoo3 passes to eval(), in its order.
EVALUATED = ("normalize", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs")
_WRAPPER_KEYS = ("env_wrapper", "vec_env_wrapper", "callback")
_KNOWN_WRAPPERS = re.compile(
    r"(stable_baselines3\.common\.atari_wrappers\.\w+"
    r"|stable_baselines3\.common\.vec_env\.(vec_frame_stack\.)?VecFrameStack"
    r"|rl_zoo3\.wrappers\.\w+"
    r"|minigrid\.wrappers\.\w+"
    r"|sb3_policyopt\.callbacks\.(AdaptiveLearningRate|StaggeredResets)"
    r"|gymnasium\.wrappers\.(\w+\.)?(ClipAction|ClipReward|DelayObservation|DtypeObservation|FilterObservation|FlattenObservation"
    r"|FrameStackObservation|GrayscaleObservation|MaxAndSkipObservation|NormalizeObservation|NormalizeReward|RescaleAction"
    r"|RescaleObservation|ReshapeObservation|ResizeObservation|StickyAction|TimeAwareObservation|TimeLimit))"
)
_PATH = re.compile(r"(?<![\w.:/])(~?/[\w.+@ -]*[\w.+@-])+/?|[A-Za-z]:\\[\w.+@\\ -]+")
_URL = re.compile(r"\w+://\S+")


def check_config(config: Mapping[str, object], name: str) -> None:
    """
    Check that rl-zoo3 can use a ``config.yml`` without running code from it.

    :param config: hyperparameters in rl-zoo3's form
    :param name: what to call them in an error
    :raises ValueError: if a string that rl-zoo3 evaluates is not a literal, or a wrapper or a policy is not a known one
    """
    for key in EVALUATED:
        value = config.get(key)
        if isinstance(value, str) and not is_literal(value):
            raise ValueError(f"{key} in {name} is Python code that is not a plain literal: {value!r}")
    policy = config.get("policy")
    if isinstance(policy, str) and "." in policy and policy not in class_names():  # which rl-zoo3 imports
        raise ValueError(f"policy in {name} names {policy}, which is not one of the known policies")
    for key in _WRAPPER_KEYS:
        for wrapper, _ in wrappers_in(config, key, name):
            if not _KNOWN_WRAPPERS.fullmatch(wrapper):
                raise ValueError(f"{key} in {name} names {wrapper}, which is not one of the known wrappers")


def wrappers(entry: object) -> Wrappers:
    """
    Read an ``env_wrapper`` entry of rl-zoo3.

    :param entry: a dotted name, a mapping ``{name: arguments}``, a list of these, or None
    :return: dotted names with their keyword arguments, innermost first
    :raises ValueError: if a wrapper has arguments without names
    """
    pairs: Wrappers = []
    for item in entry if isinstance(entry, list) else [entry]:
        if isinstance(item, Mapping):
            for name, arguments in item.items():
                if not isinstance(arguments, Mapping | None):
                    raise ValueError(f"{name} has {arguments!r}, and not a dictionary of its arguments by name")
                pairs.append((str(name), {str(key): value for key, value in (arguments or {}).items()}))
        elif item is not None:
            pairs.append((str(item), {}))
    return pairs


def wrappers_in(config: Mapping[str, object], key: str, name: str = "config") -> Wrappers:
    """
    Read the wrappers of one entry of a configuration.

    :param config: hyperparameters in rl-zoo3's form
    :param key: the entry, such as "env_wrapper"
    :param name: what to call the configuration in an error
    :return: see :func:`wrappers`
    :raises ValueError: if a wrapper has arguments without names
    """
    try:
        return wrappers(config.get(key))
    except ValueError as error:
        raise ValueError(f"{key} in {name}: {error}") from error


def is_literal(source: str) -> bool:
    """
    Test whether a Python expression is plain data.

    :param source: an expression such as ``dict(net_arch=[64], activation_fn=nn.ReLU)``
    :return: True if it consists of literals, ``dict(…)`` with keywords, names of ``torch.nn`` or ``torch.optim``, and
        known classes of Stable-Baselines3 and sb3-contrib, by ``get_class_by_name("…")``
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
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "dict" and not node.args:
            return all(keyword.arg is not None and _is_literal_node(keyword.value) for keyword in node.keywords)
        return node.func.id == "get_class_by_name" and not node.keywords and _are_known_class(node.args)
    return isinstance(node, ast.Name) and node.id == "RMSpropTFLike"


def _are_known_class(arguments: list[ast.expr]) -> bool:
    """Whether the arguments of a call are the name of one known class."""
    names = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
    return len(arguments) == len(names) == 1 and names[0] in class_names()


def without_private_facts(mapping: Mapping[str, object]) -> dict[str, object]:
    """
    Remove facts about the machine: folders are cut from paths, and addresses (storages, remotes) are replaced.

    :param mapping: JSON-like data
    :return: the same with every string cleaned
    """
    return {key: _clean(value) for key, value in mapping.items()}


def _clean(value: object) -> object:
    if isinstance(value, Mapping):
        return without_private_facts(value)
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    if not isinstance(value, str):
        return value
    return _PATH.sub(lambda match: _last_component(match.group()), _URL.sub("(address removed)", value))


def _last_component(path: str) -> str:
    return (PureWindowsPath(path) if "\\" in path else PurePath(path)).name
