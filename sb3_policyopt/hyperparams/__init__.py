"""
The hyperparameters that this package ships, one rl-zoo3 YAML file for each algorithm.

``-conf sb3_policyopt.hyperparams.ppo`` makes rl-zoo3's own commands read them.
"""

from pathlib import Path
from typing import Any

ALGORITHMS = ("ppo", "trpo")


def path(algo: str) -> Path:
    """
    Find the YAML file of an algorithm.

    :param algo: ``"ppo"`` or ``"trpo"``
    :return: the file beside this module (installed from a wheel) or in the root of the source tree
    """
    if algo not in ALGORITHMS:
        raise ValueError(f"algo must be one of {', '.join(ALGORITHMS)}, not {algo!r}")
    here = Path(__file__).resolve().parent
    packaged = here / f"{algo}.yml"
    return packaged if packaged.is_file() else here.parents[1] / "hyperparams" / f"{algo}.yml"


def load(algo: str) -> dict[str, dict[str, Any]]:
    """
    Read the hyperparameters of an algorithm.

    :param algo: ``"ppo"`` or ``"trpo"``
    :return: hyperparameters by environment id, with the further keys ``"default"`` and ``"atari"``; a new dictionary
        at each call, because rl-zoo3 deletes from it what it has used
    """
    import yaml

    hyperparams: dict[str, dict[str, Any]] = yaml.safe_load(path(algo).read_text(encoding="utf-8"))
    return hyperparams
