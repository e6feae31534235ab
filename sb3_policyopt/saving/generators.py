"""The state of every random generator that training draws from."""

import random
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import StateDependentNoiseDistribution


def capture() -> dict[str, Any]:
    """
    The global generators of Python, NumPy and PyTorch.

    :return: their states, for :func:`restore`
    """
    state: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": th.get_rng_state()}
    if th.cuda.is_initialized():  # type: ignore[no-untyped-call]  # somebody in this process computes on a GPU
        state["cuda"] = th.cuda.get_rng_state_all()
    return state


def restore(state: dict[str, Any]) -> None:
    """
    Continue the sequences where they were.

    :param state: of :func:`capture`
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    th.set_rng_state(state["torch"])
    for gpu, state_there in enumerate(state.get("cuda", [])[: th.cuda.device_count()]):
        th.cuda.set_rng_state(state_there, gpu)


def exploration_matrices(model: BaseAlgorithm) -> dict[str, th.Tensor]:
    """
    The noise that gSDE has drawn and still uses.

    :param model: any algorithm
    :return: tensors by attribute of the action distribution, none without gSDE
    """
    distribution = getattr(model.policy, "action_dist", None)
    if not isinstance(distribution, StateDependentNoiseDistribution):
        return {}
    names = ("exploration_mat", "exploration_matrices")
    return {name: getattr(distribution, name).detach().cpu() for name in names if hasattr(distribution, name)}


def restore_exploration_matrices(model: BaseAlgorithm, matrices: dict[str, th.Tensor]) -> None:
    """
    Put gSDE's noise back.

    :param model: the algorithm
    :param matrices: of :func:`exploration_matrices`
    """
    for name, matrix in matrices.items():
        setattr(model.policy.action_dist, name, matrix.to(model.device))  # type: ignore[union-attr]
