"""
The algorithms of this package, one entry for each.

The zoo, the Hub, the plots, the doctor and the hyperparameters read this table and contain no list of their own. To add an
algorithm, write its file, its YAML file of hyperparameters, and one entry here::

    register(Algorithm("mine", "my_package.mine:Mine", hyperparameters="/path/to/mine.yml", ...))

An entry names classes and functions as ``module:attribute``; they are imported when they are needed, so that this module
imports neither torch nor an optional package.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from sb3_policyopt.saving.safe_zip import SelfDescribing


def resolve(reference: str) -> object:
    """
    Import what a reference names.

    :param reference: ``module:attribute``
    :return: the attribute
    """
    module, _, attribute = reference.partition(":")
    return cast(object, getattr(importlib.import_module(module), attribute))


@dataclass(frozen=True)
class Algorithm:
    """
    The entry of an algorithm.

    :param name: rl-zoo3's key: the name of the class in lower case, because rl-zoo3 finds the class of a published agent by it
    :param class_reference: the class, as ``module:attribute``
    :param hyperparameters: its YAML file in the folder ``hyperparams``, or an absolute path
    :param panels: what the page of plots shows of its updates: a sequence of :class:`sb3_policyopt.plots.panels.Panel`
    :param rules: the doctor's rules for it: a sequence of :class:`sb3_policyopt.doctor.rule.Rule`
    :param sampler: rl-zoo3's function that samples its hyperparameters in a search
    :param metric: a column that its log has and that the logs of the other algorithms lack
    :param stock: the class that loads its zips without this package, None if there is none
    """

    name: str
    class_reference: str
    hyperparameters: str
    panels: str
    rules: str
    sampler: str
    metric: str
    stock: str | None = None

    @property
    def class_name(self) -> str:
        """Name of the class."""
        return self.class_reference.rpartition(":")[2]

    def load_class(self) -> "type[SelfDescribing]":
        """
        Import the class.

        :return: the class
        """
        return cast("type[SelfDescribing]", resolve(self.class_reference))


ALGORITHMS: dict[str, Algorithm] = {}
"""By name, in the order of registration."""


def register(algorithm: Algorithm) -> None:
    """
    Add an algorithm. If ``sb3_policyopt.zoo`` is imported already, call ``sb3_policyopt.zoo.register()`` afterwards.

    :param algorithm: its entry
    :raises ValueError: if the name is not that of the class in lower case
    """
    if algorithm.name != algorithm.class_name.lower():
        raise ValueError(f"the name of {algorithm.class_reference} must be {algorithm.class_name.lower()!r}")
    ALGORITHMS[algorithm.name] = algorithm


def find(name: str) -> Algorithm:
    """
    Look up an algorithm.

    :param name: rl-zoo3's key
    :return: its entry
    :raises ValueError: if there is none
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algo must be one of {', '.join(ALGORITHMS)}, not {name!r}")
    return ALGORITHMS[name]


def title(name: str) -> str:
    """
    Name an algorithm for readers.

    :param name: rl-zoo3's key, or ""
    :return: the name of its class; the key in capitals if it is not in the table
    """
    return ALGORITHMS[name].class_name if name in ALGORITHMS else name.upper()


def class_names() -> str:
    """
    List the algorithms for a sentence.

    :return: such as "PPO and TRPO"
    """
    *others, last = (algorithm.class_name for algorithm in ALGORITHMS.values())
    return f"{', '.join(others)} and {last}" if others else last


register(
    Algorithm(
        "ppo",
        "sb3_policyopt.ppo:PPO",
        hyperparameters="ppo.yml",
        panels="sb3_policyopt.plots.panels:PPO_PANELS",
        rules="sb3_policyopt.doctor.rules:PPO_RULES",
        sampler="rl_zoo3.hyperparams_opt:sample_ppo_params",
        metric="train/clip_fraction",
        stock="stable_baselines3:PPO",
    )
)
register(
    Algorithm(
        "trpo",
        "sb3_policyopt.trpo:TRPO",
        hyperparameters="trpo.yml",
        panels="sb3_policyopt.plots.panels:TRPO_PANELS",
        rules="sb3_policyopt.doctor.rules:TRPO_RULES",
        sampler="sb3_policyopt.zoo.sampling:sample_trpo_params",
        metric="train/is_line_search_success",
        stock="sb3_contrib:TRPO",
    )
)
