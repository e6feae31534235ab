"""
The algorithms of this package, one entry for each.

The zoo, the Hub, the plots, the doctor and the hyperparameters read this table and contain no list of their own. To add an
algorithm, write its file, its YAML file of hyperparameters, and one entry here::

    register(Algorithm("mine", "my_package.mine:Mine", hyperparameters="/path/to/mine.yml", ...))

An entry names classes and functions as ``module:attribute``; they are imported when they are needed, so that this module
imports neither torch nor an optional package.
"""

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sb3_policyopt.errors import UserError

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

    :param name: rl-zoo3's key, which is part of the names of folders, files and repositories: lower case, digits and "_"
    :param class_reference: the class, as ``module:attribute``
    :param hyperparameters: its YAML file in the folder ``hyperparams``, or an absolute path
    :param panels: what the page of plots shows of its updates: a sequence of :class:`sb3_policyopt.plots.panels.Panel`
    :param rules: the doctor's rules for it: a sequence of :class:`sb3_policyopt.doctor.rule.Rule`
    :param sampler: rl-zoo3's function that samples its hyperparameters in a search
    :param metric: a column that its log has and that the logs of the other families of algorithms lack
    :param stock: the class that loads its zips without this package, None if there is none
    :param converter: rl-zoo3's function that turns the parameters of a finished trial into arguments of the constructor
    :param family: name of the entry whose update it makes, by default its own: "ppo" of PPO with masks
    :param masks: whether its policies have masks
    :param memory: whether its policies have memory
    """

    name: str
    class_reference: str
    hyperparameters: str
    panels: str
    rules: str
    sampler: str
    metric: str
    stock: str | None = None
    converter: str = "rl_zoo3.hyperparams_opt:convert_onpolicy_params"
    family: str = ""
    masks: bool = False
    memory: bool = False

    def __post_init__(self) -> None:
        if not self.family:
            object.__setattr__(self, "family", self.name)

    @property
    def class_name(self) -> str:
        """Name of the class."""
        return self.class_reference.rpartition(":")[2]

    @property
    def model_name(self) -> str:
        """
        What a model card calls the algorithm, so that rl-zoo3 finds its key again.

        rl-zoo3 takes the name in lower case for the key, but for ``RecurrentPPO``. So it is the name of the class where this
        gives the key, else the key in capitals.
        """
        key = self.class_name.lower()
        return self.class_name if ZOO_KEYS.get(key, key) == self.name else self.name.upper()

    def load_class(self) -> "type[SelfDescribing]":
        """
        Import the class.

        :return: the class
        """
        return cast("type[SelfDescribing]", resolve(self.class_reference))


ZOO_KEYS = {"recurrentppo": "ppo_lstm"}
"""rl-zoo3's keys of published agents by the name of their model in lower case, where the two differ."""

ALGORITHMS: dict[str, Algorithm] = {}
"""By name, in the order of registration."""


def register(algorithm: Algorithm) -> None:
    """
    Add an algorithm. If ``sb3_policyopt.zoo`` is imported already, call ``sb3_policyopt.zoo.register()`` afterwards.

    :param algorithm: its entry
    :raises ValueError: if the name cannot be a key, or another entry has a class of the same name
    """
    if not re.fullmatch(r"[a-z0-9_]+", algorithm.name):
        raise ValueError(f"the name of {algorithm.class_reference} must be in lower case: letters, digits and _")
    other = of_class(algorithm.class_name)
    if other is not None and other.name != algorithm.name:
        raise ValueError(f"{other.name} has a class of the name {algorithm.class_name}, by which saved agents are found")
    ALGORITHMS[algorithm.name] = algorithm


def import_packages(packages: Iterable[str]) -> None:
    """
    Import the modules of ``--gym-packages``.

    :param packages: modules that register environments or algorithms
    :raises UserError: if there is none of that name
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise UserError(f"--gym-packages {package}: {error}") from error


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


def of_class(class_name: str) -> Algorithm | None:
    """
    Look up an algorithm by its class.

    :param class_name: name of the class, as a saved agent records it; upper or lower case
    :return: its entry, None if there is none
    """
    found = (one for one in ALGORITHMS.values() if one.class_name.lower() == class_name.lower())
    return next(found, None)


def of_policy(algorithm: Algorithm, masks: bool, memory: bool) -> Algorithm:
    """
    The entry under which an agent is published: that of its algorithm for the kind of its policy.

    :param algorithm: that trained the agent
    :param masks: whether its policy has masks
    :param memory: whether its policy has memory
    :return: such as ``ppo_mask`` for PPO with masks, also with masks and memory; ``algorithm`` if there is no other
    """
    if (masks, memory) == (False, False) or (algorithm.masks, algorithm.memory) == (masks, memory):
        return algorithm
    kinds = [(masks, memory), (masks, False)]
    same = [one for one in ALGORITHMS.values() if one.family == algorithm.family and (one.masks, one.memory) in kinds]
    return min(same, key=lambda one: kinds.index((one.masks, one.memory)), default=algorithm)


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
register(
    Algorithm(
        "ppo_lstm",
        "sb3_policyopt.recurrent:RecurrentPPO",
        hyperparameters="ppo_lstm.yml",
        panels="sb3_policyopt.plots.panels:PPO_PANELS",
        rules="sb3_policyopt.doctor.rules:PPO_RULES",
        sampler="sb3_policyopt.zoo.sampling:sample_ppo_lstm_params",
        converter="sb3_policyopt.zoo.sampling:convert_lstm_params",
        metric="train/clip_fraction",
        stock="sb3_contrib:RecurrentPPO",
        family="ppo",
        memory=True,
    )
)
register(
    Algorithm(
        "trpo_lstm",
        "sb3_policyopt.recurrent:RecurrentTRPO",
        hyperparameters="trpo_lstm.yml",
        panels="sb3_policyopt.plots.panels:TRPO_PANELS",
        rules="sb3_policyopt.doctor.rules:TRPO_RULES",
        sampler="sb3_policyopt.zoo.sampling:sample_trpo_lstm_params",
        converter="sb3_policyopt.zoo.sampling:convert_lstm_params",
        metric="train/is_line_search_success",
        family="trpo",
        memory=True,
    )
)
register(
    Algorithm(
        "ppo_mask",
        "sb3_policyopt.maskable:MaskablePPO",
        hyperparameters="ppo_mask.yml",
        panels="sb3_policyopt.plots.panels:PPO_PANELS",
        rules="sb3_policyopt.doctor.rules:PPO_RULES",
        sampler="rl_zoo3.hyperparams_opt:sample_ppo_params",
        metric="train/clip_fraction",
        stock="sb3_contrib:MaskablePPO",
        family="ppo",
        masks=True,
    )
)
register(
    Algorithm(
        "trpo_mask",
        "sb3_policyopt.maskable:MaskableTRPO",
        hyperparameters="trpo_mask.yml",
        panels="sb3_policyopt.plots.panels:TRPO_PANELS",
        rules="sb3_policyopt.doctor.rules:TRPO_RULES",
        sampler="sb3_policyopt.zoo.sampling:sample_trpo_params",
        metric="train/is_line_search_success",
        family="trpo",
        masks=True,
    )
)
