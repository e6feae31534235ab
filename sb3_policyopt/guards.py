"""Nothing non-finite gets in: the checks of what environments and policies hand over, and the words when one fails."""

import math
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

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


def explain(step: int, **quantities: Any) -> NonFiniteError:
    """
    The error that names what is not finite.

    :param step: number of the step in the current rollout
    :param quantities: arrays with n_envs as first axis (or dicts of such), in the order in which one causes the next;
        "log_prob" stands for the log-probability
    :return: the error, to be raised
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
    return NonFiniteError(f"Non-finite numbers at step {step} of the rollout.")


def check_observations(observations: Any) -> None:
    """
    Refuse a rollout whose stored observations are not all finite (an infinite one may pass a tanh unnoticed).

    :param observations: shape (n_steps, n_envs, ...), or a dict of such
    :raises NonFiniteError: naming the first step and environment
    """
    for key, array in observations.items() if isinstance(observations, dict) else [(None, observations)]:
        if not np.issubdtype(array.dtype, np.inexact) or math.isfinite(float(np.add.reduce(array, axis=None))):
            continue
        bad_steps = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
        if len(bad_steps):
            step = int(bad_steps[0])
            raise explain(step, observation=array[step] if key is None else {key: array[step]})


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
