"""The state of every random generator that training draws from."""

import random
from collections.abc import Callable
from typing import TypeAlias, TypedDict

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import StateDependentNoiseDistribution

PythonState: TypeAlias = tuple[object, ...]
NumPyState: TypeAlias = dict[str, object] | tuple[str, NDArray[np.uint32], int, int, float]


class _GlobalStates(TypedDict):
    """
    The states of the generators that every process has.

    :param python: of ``random``
    :param numpy: of ``numpy.random``
    :param torch: on the CPU
    """

    python: PythonState
    numpy: NumPyState
    torch: th.Tensor


class GeneratorStates(_GlobalStates, total=False):
    """
    The same, and of the generators on the GPUs if this process uses one.

    :param cuda: one state per GPU
    """

    cuda: list[th.Tensor]


def capture() -> GeneratorStates:
    """
    The global generators of Python, NumPy and PyTorch.

    :return: their states, for :func:`restore`
    """
    state: GeneratorStates = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": th.get_rng_state()}
    uses_gpu: Callable[[], bool] = th.cuda.is_initialized  # torch gives no type
    if uses_gpu():
        state["cuda"] = th.cuda.get_rng_state_all()
    return state


def restore(state: GeneratorStates) -> None:
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
    distribution = _gsde(model)
    if distribution is None:
        return {}
    names = ("exploration_mat", "exploration_matrices")
    return {name: getattr(distribution, name).detach().cpu() for name in names if hasattr(distribution, name)}


def restore_exploration_matrices(model: BaseAlgorithm, matrices: dict[str, th.Tensor]) -> None:
    """
    Restore gSDE's noise.

    :param model: the algorithm
    :param matrices: of :func:`exploration_matrices`
    """
    distribution = _gsde(model)
    for name, matrix in matrices.items():
        setattr(distribution, name, matrix.to(model.device))


def _gsde(model: BaseAlgorithm) -> StateDependentNoiseDistribution | None:
    """
    The action distribution of a policy with gSDE.

    :param model: any algorithm
    :return: None without gSDE
    """
    distribution = getattr(model.policy, "action_dist", None)
    return distribution if isinstance(distribution, StateDependentNoiseDistribution) else None
