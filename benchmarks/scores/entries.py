"""The hyperparameters to train with: those that are shipped, and the candidates beside this file."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from gymnasium.envs.registration import EnvSpec
from sb3_contrib import TRPO as StockTRPO
from stable_baselines3 import PPO as StockPPO

from sb3_policyopt import PPO, TRPO, hyperparams
from sb3_policyopt.errors import did_you_mean
from sb3_policyopt.saving.constructors import parameters_of

CANDIDATES = Path(__file__).resolve().parent / "candidates.yml"
SHIPPED = "shipped"

Entry = dict[str, Any]


def load(algo: str, env_id: str, name: str = SHIPPED, candidates: Path = CANDIDATES) -> Entry:
    """
    Read an entry in rl-zoo3's format.

    :param algo: "ppo" or "trpo"
    :param env_id: the environment, which decides what "shipped" is
    :param name: "shipped" for the entry of hyperparams/*.yml, else the name of a candidate; after it, separated by spaces,
        what is set differently: ``"shared gamma=0.98 policy_kwargs=dict(log_std_init=-1)"``
    :param candidates: the file with the candidates
    :return: a new dictionary
    :raises ValueError: if there is no such entry
    """
    base, *changes = name.split()
    if base == SHIPPED:
        entries, where, key = _shipped(algo), hyperparams.path(algo), _shipped_key(algo, env_id)
    else:
        entries, where, key = yaml.safe_load(candidates.read_text(encoding="utf-8"))[algo], candidates, base
    if key not in entries:
        raise ValueError(f"{where} has no entry {key!r} for {algo}; it has {', '.join(sorted(entries))}")
    return {**entries[key], **dict(_change(text) for text in changes)}


def check_environment(env_id: str) -> None:
    """
    Look whether an environment is registered.

    :param env_id: its id
    :raises ValueError: if it is not; the message has the most similar one
    """
    if _spec(env_id) is None:
        raise ValueError(f"there is no environment {env_id}{did_you_mean(env_id, gym.envs.registry)}")


def is_listed(algo: str, env_id: str) -> bool:
    """Whether hyperparams/*.yml has an entry of its own for an environment."""
    return _shipped_key(algo, env_id) in _shipped(algo)


def _shipped_key(algo: str, env_id: str) -> str:
    """The name of an environment's entry in hyperparams/*.yml: its own, else that of all Atari games, as in rl-zoo3."""
    spec = None if env_id in _shipped(algo) else _spec(env_id)
    return "atari" if spec is not None and "AtariEnv" in str(spec.entry_point) else env_id


def _spec(env_id: str) -> EnvSpec | None:
    """What Gymnasium knows about an environment, with rl-zoo3's imports; None if nothing."""
    import rl_zoo3.import_envs  # noqa: F401

    return gym.envs.registry.get(env_id)


@cache
def _shipped(algo: str) -> dict[str, Entry]:
    """The file of an algorithm, read once; nothing here changes an entry."""
    return hyperparams.load(algo)


def _change(text: str) -> tuple[str, Any]:
    """
    Read one change of an entry.

    :param text: ``key=value``
    :return: both; the value is a number if it looks like one, and a list if it begins with a bracket
    :raises ValueError: if there is no "="
    """
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ValueError(f"a change of an entry is written key=value without spaces, not {text!r}")
    for type_ in (int, float):
        try:
            return key, type_(value)
        except ValueError:
            continue
    if value.startswith("["):
        return key, yaml.safe_load(value)
    return key, {"True": True, "False": False}.get(value, value)


def identity(entry: Mapping[str, Any]) -> str:
    """
    A short name for what an entry sets, whatever its order and its number of timesteps, which a run records by itself.

    :param entry: in rl-zoo3's format
    :return: ten hexadecimal digits
    """
    settings = {key: value for key, value in entry.items() if key != "n_timesteps"}
    if isinstance(settings.get("policy_kwargs"), str):
        settings["policy_kwargs"] = "".join(settings["policy_kwargs"].split())
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def check_stock(algo: str, entry: Mapping[str, Any]) -> None:
    """
    Look whether SB3's PPO or sb3-contrib's TRPO has what an entry sets.

    :param algo: "ppo" or "trpo"
    :param entry: ours
    :raises ValueError: if it sets arguments that only this package has
    """
    ours, stock = (parameters_of(kind).keys() for kind in ((PPO, StockPPO) if algo == "ppo" else (TRPO, StockTRPO)))
    if missing := sorted((ours - stock) & entry.keys()):
        raise ValueError(f"stock {algo.upper()} has no {', '.join(missing)}")


def on_the_scale_of_contrib(entry: Mapping[str, Any], dimensions: int) -> Entry:
    """
    TRPO's entry for sb3-contrib, whose KL divergence and Fisher matrix are ours divided by the dimensions of an action.

    :param entry: ours
    :param dimensions: over which sb3-contrib takes the mean; 1 where it takes none
    :return: theirs
    :raises ValueError: if ``target_kl`` or ``cg_damping`` is a schedule, which sb3-contrib does not have
    """
    scaled = {"target_kl": entry.get("target_kl", 0.01), "cg_damping": entry.get("cg_damping", 0.1)}
    for name, value in scaled.items():
        if isinstance(value, str):
            raise ValueError(f"sb3-contrib's {name} is a number, not a schedule such as {value!r}")
    return {**entry, **{name: value / dimensions for name, value in scaled.items()}}
