"""Nothing non-finite gets in: the checks of what environments and policies hand over, and the words when one fails."""

import math
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_policyopt.errors import NonFiniteError

CAUSES = {
    "observation": "the environment (or a wrapper such as VecNormalize) returned it; look for a division by zero or an "
    "unstable simulation there, or end the episode when it diverges",
    "reward": "the environment's reward function returned it; look for a division by zero, a logarithm or an overflow there",
    "value": "the critic's output overflowed, though its observation is finite: normalise observations and rewards "
    "(VecNormalize) or lower learning_rate",
    "action": "the actor's output overflowed, though its observation is finite: normalise observations (VecNormalize), "
    "lower learning_rate or set log_std_bounds",
    "log-probability": "the standard deviation of the policy under- or overflowed: set log_std_bounds, or lower "
    "learning_rate or ent_coef",
}


def is_finite(*vectors: NDArray[Any]) -> bool:
    """
    Whether all entries are finite, in a microsecond: a sum of squares is finite only if every entry is.

    :param vectors: arrays of numbers with one axis
    :return: True if so
    """
    total = 0.0
    for vector in vectors:
        total += vector.dot(vector)
    # A sum that overflowed may hide entries that are large but finite.
    return math.isfinite(total) or all(bool(np.isfinite(vector).all()) for vector in vectors)


def explain(step: int, **quantities: Any) -> NonFiniteError | None:
    """
    The error that names what is not finite.

    :param step: number of the step in the current rollout
    :param quantities: arrays with n_envs as first axis (or dicts of such), in the order in which one causes the next;
        "log_prob" stands for the log-probability
    :return: the error, to be raised; None if all is finite
    """
    for name, array in quantities.items():
        quantity = {"log_prob": "log-probability"}.get(name, name)
        for key, part in array.items() if isinstance(array, dict) else [(None, array)]:
            part = np.asarray(part)
            if not np.issubdtype(part.dtype, np.inexact) or np.isfinite(part).all():
                continue
            env = int(np.flatnonzero(~np.isfinite(part.reshape(len(part), -1)).all(1))[0])
            where = f" (key {key!r})" if key is not None else ""
            shown = np.array2string(part[env], threshold=8, precision=4)
            return NonFiniteError(
                f"Non-finite {quantity}{where} in environment {env} at step {step} of the rollout: {shown}. "
                f"Likely cause: {CAUSES[quantity]}. The policy has not been changed by it."
            )
    return None


def check_rows(buffer: RolloutBuffer, start: int, stop: int) -> None:
    """
    Refuse steps of a rollout that are not all finite. Many at once cost little more than one.

    Only numbers that can hurt an environment must be looked at sooner; an infinite observation may even pass a tanh unnoticed.

    :param buffer: into which the steps have been stored
    :param start: first step to look at
    :param stop: the step after the last one
    :raises NonFiniteError: naming the first step and environment, and what was the first to go wrong there
    """
    quantities = {
        "observation": buffer.observations,
        "value": buffer.values,
        "action": buffer.actions,
        "log_prob": buffer.log_probs,
        "reward": buffer.rewards,
    }
    arrays = [part for array in quantities.values() for part in (array.values() if isinstance(array, dict) else [array])]
    if all(_sum_is_finite(array[start:stop]) for array in arrays):
        return
    for step in range(start, stop):
        of_step = {name: _row(array, step) for name, array in quantities.items()}
        error = explain(step, **of_step)
        if error is not None:
            raise error


def _sum_is_finite(array: NDArray[Any]) -> bool:
    """
    A quick look: False if an entry is not finite, and rarely also where their sum overflows.

    :param array: any shape and type
    :return: True if the sum of all entries is finite
    """
    if not np.issubdtype(array.dtype, np.inexact):
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(float(np.add.reduce(array, axis=None)))


def _row(array: Any, row: int) -> Any:
    """
    One row of an array, or of each array of a dict.

    :param array: first axis rows
    :param row: its number
    :return: the row
    """
    return {key: part[row] for key, part in array.items()} if isinstance(array, dict) else array[row]


PATIENCE = 8
"""Updates in a row (minibatches of PPO and of the critic) that may be skipped before training stops."""


class SkipCounter:
    """Counts updates that were refused because they were not finite; ends training after several in a row."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def note(self, skipped: list[Any]) -> None:
        """
        Take note of a series of updates.

        :param skipped: 1 for each that was skipped, 0 for each that was made; floats or scalar tensors
        :raises NonFiniteError: after ``PATIENCE`` skipped ones in a row
        """
        flags = th.stack(skipped).tolist() if skipped and isinstance(skipped[0], th.Tensor) else skipped  # one wait, not many
        for flag in flags:
            self.in_a_row = self.in_a_row + 1 if flag else 0
            if self.in_a_row >= PATIENCE:
                self.in_a_row = 0
                raise NonFiniteError(
                    f"{PATIENCE} updates in a row had a non-finite loss or gradient and were skipped; the policy is as the "
                    "last good update left it, and can be saved. Likely cause: rewards or returns on a scale that "
                    "overflows (use VecNormalize), or a custom loss or network that divides by zero or takes the "
                    "logarithm of a number that is not positive."
                )
