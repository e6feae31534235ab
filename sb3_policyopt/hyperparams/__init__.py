"""
The hyperparameters that this package ships, one rl-zoo3 YAML file for each algorithm.

``-conf sb3_policyopt.hyperparams.ppo`` makes rl-zoo3's own commands read them.
"""

from collections.abc import Callable
from pathlib import Path

from sb3_policyopt import registry

Entries = dict[str, dict[str, object]]
"""Hyperparameters by environment id, with the further keys ``"default"`` and ``"atari"``."""


def folder() -> Path:
    """
    Find the folder of the YAML files.

    The files are in ``hyperparams/`` of the source tree. A wheel contains a copy of them in this package
    (``force-include`` in ``pyproject.toml``), and an installation from a wheel has no other.

    :return: this package's own folder if it contains YAML files, else that of the source tree
    """
    package = Path(__file__).resolve().parent
    return package if any(package.glob("*.yml")) else package.parents[1] / "hyperparams"


def path(algo: str) -> Path:
    """
    Find the YAML file of an algorithm.

    :param algo: name of a registered algorithm, such as ``"ppo"``
    :return: the file
    :raises ValueError: if there is no such algorithm
    """
    return folder() / registry.find(algo).hyperparameters


def load(algo: str) -> Entries:
    """
    Read the hyperparameters of an algorithm.

    :param algo: name of a registered algorithm, such as ``"ppo"``
    :return: a new dictionary at each call, because rl-zoo3 deletes from it what it has used
    :raises ValueError: if there is no such algorithm
    """
    import yaml

    entries: Entries = yaml.safe_load(path(algo).read_text(encoding="utf-8"))
    return entries


def module_attributes(algo: str) -> Callable[[str], Entries]:
    """
    Make the ``__getattr__`` of a module that rl-zoo3's ``-conf`` can name.

    The module's ``hyperparams`` are read anew at each access: rl-zoo3 empties the dictionary, and a second experiment in the
    same process would find it empty.

    :param algo: name of a registered algorithm
    :return: the function
    """

    def attribute(name: str) -> Entries:
        if name == "hyperparams":
            return load(algo)
        raise AttributeError(f"module {__name__ + '.' + algo!r} has no attribute {name!r}")

    return attribute
