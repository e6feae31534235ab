"""TRPO's hyperparameters as a Python module: ``-conf sb3_policyopt.hyperparams.trpo``."""

from typing import Any

from sb3_policyopt.hyperparams import load


def __getattr__(name: str) -> dict[str, dict[str, Any]]:
    """Give rl-zoo3 a fresh ``hyperparams`` whenever it asks, so that two experiments in one process do not share one."""
    if name == "hyperparams":
        return load("trpo")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
