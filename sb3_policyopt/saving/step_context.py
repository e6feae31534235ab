"""What the next step needs of the last one beside observations: it is left out of zips, and kept in checkpoints."""

from typing import Any, TypedDict

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.context import Memory
from sb3_policyopt.rollout.tensors.buffer import TensorRolloutBuffer
from sb3_policyopt.rollout.tensors.episodes import Episodes
from sb3_policyopt.rollout.transfer import to_host


class StepContext(TypedDict):
    """
    The state between two steps.

    :param lstm_states: hidden and cell state of the actor, then of the critic, shape (n_layers, n_envs, hidden) each; None
        for a policy without memory
    :param action_masks: the masks that came with the last observations; None if the environments are asked for them
    :param episodes: returns and lengths so far of the episodes under way, shape (n_envs,) each; None where the environments
        count them
    """

    lstm_states: list[NumpyArray] | None
    action_masks: NumpyArray | None
    episodes: list[NumpyArray] | None


def capture(model: BaseAlgorithm) -> StepContext:
    """
    Copy the state.

    :param model: any algorithm of this package
    :return: the copy, without memory of a GPU
    """
    memory, masks = getattr(model, "_last_lstm_states", None), getattr(model, "_last_action_masks", None)
    episodes: Episodes | None = vars(getattr(model, "rollout_buffer", None) or model).get("episodes")
    return {
        "lstm_states": None if memory is None else [_array(part) for states in memory for part in states],
        "action_masks": None if masks is None else np.array(masks),
        "episodes": None if episodes is None else [_array(episodes.sums), _array(episodes.counts)],
    }


def restore(model: BaseAlgorithm, context: StepContext | None) -> None:
    """
    Restore the state.

    :param model: the algorithm
    :param context: of :func:`capture`; None leaves the state with which a training starts
    """
    if context is None:
        return
    attributes: dict[str, Any] = vars(model)
    attributes["_last_action_masks"] = context["action_masks"]
    buffer, episodes = attributes.get("rollout_buffer"), context.get("episodes")
    if episodes is not None and isinstance(buffer, TensorRolloutBuffer):
        buffer.episodes = Episodes(buffer.buffer_size, buffer.n_envs, buffer.rewards.device)
        buffer.episodes.sums, buffer.episodes.counts = (th.as_tensor(a, device=buffer.rewards.device) for a in episodes)
    if context["lstm_states"] is not None:
        given = attributes["_last_lstm_states"]
        parts = [_like(part, array) for part, array in zip((*given.pi, *given.vf), context["lstm_states"], strict=True)]
        attributes["_last_lstm_states"] = Memory((parts[0], parts[1]), (parts[2], parts[3]))


def _array(part: Any) -> NumpyArray:
    """
    A part of a state as an array of its own.

    :param part: a tensor or an array
    :return: a copy
    """
    array: NumpyArray = np.array(to_host(part.detach())[0] if isinstance(part, th.Tensor) else part)
    return array


def _like(part: Any, array: NumpyArray) -> Any:
    """
    An array in the form of a part of the present state.

    :param part: a tensor or an array
    :param array: the numbers
    :return: a tensor on the device of ``part``, or an array
    """
    return th.as_tensor(array.copy(), device=part.device) if isinstance(part, th.Tensor) else array.copy()
