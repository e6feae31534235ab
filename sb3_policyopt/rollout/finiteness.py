"""Checks that what environments and networks return is finite, and the error that names what is not."""

import math
from collections.abc import Sequence

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_policyopt.errors import NonFiniteError
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Observations

STEPS_PER_CHECK = 64
"""Steps after which the last ones are searched for numbers that are not finite."""

OBSERVED = (
    "the environment (or a wrapper such as VecNormalize) returned it; look for a division by zero or an unstable simulation "
    "there, or end the episode when it diverges; if it marks entries that are absent and the features extractor masks them, "
    "pass check_observations=False"
)
QUANTITIES = {
    "observation": ("observation", OBSERVED),
    "value": (
        "value",
        "the critic's output overflowed, though its observation is finite: normalise observations and rewards (VecNormalize) "
        "or lower learning_rate",
    ),
    "action": (
        "action",
        "the actor's output overflowed, though its observation is finite: normalise observations (VecNormalize), lower "
        "learning_rate or set log_std_bounds",
    ),
    "log_prob": (
        "log-probability",
        "the standard deviation of the policy under- or overflowed: set log_std_bounds, or lower learning_rate or ent_coef",
    ),
    "reward": (
        "reward",
        "the environment's reward function returned it; look for a division by zero, a logarithm or an overflow there",
    ),
    "final_observation": (
        "final observation",
        f"a time limit cut the episode off there (info['terminal_observation']), and {OBSERVED}",
    ),
    "final_value": (
        "value of the final observation",
        "the critic's output overflowed for the observation at which a time limit cut the episode off, though that is finite: "
        "normalise observations and rewards (VecNormalize) or lower learning_rate",
    ),
    "bootstrapped_reward": (
        "reward with the value of the final observation",
        "both are finite, but too large to be added: normalise rewards (VecNormalize)",
    ),
}
"""By name: how a quantity is called, and what makes it not finite."""

UNMASKED = (
    "the observation is not finite either, which check_observations=False allows, and the networks have not masked it: look "
    "at the features extractor"
)
"""The cause of what a network returned for an observation that was not checked."""


def is_finite(*vectors: NumpyArray) -> bool:
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


def explain(
    step: int,
    *,
    check_observations: bool = True,
    environments: Sequence[int] | None = None,
    **quantities: Observations[NumpyArray],
) -> NonFiniteError | None:
    """
    The error that names what is not finite.

    :param step: number of the step in the current rollout
    :param check_observations: False if an observation may hold what is not finite, and only what comes of it may not
    :param environments: the environments that the rows of the arrays belong to, None for all in order
    :param quantities: arrays with n_envs as first axis (or dicts of such) under names of ``QUANTITIES``, in the order in
        which one causes the next
    :return: the error, to be raised; None if all is finite
    """
    unchecked: Observations[NumpyArray] | None = None
    for name, array in quantities.items():
        if name.endswith("observation") and not check_observations:
            unchecked = array
            continue
        found = not_finite(array)
        if found is None:
            continue
        row, key, shown = found
        quantity, cause = QUANTITIES[name]
        of_networks = name in ("value", "action", "log_prob", "final_value")
        if of_networks and unchecked is not None and not_finite(_rows(unchecked, slice(row, row + 1))) is not None:
            cause = UNMASKED
        where = "" if key is None else f" (key {key!r})"
        return NonFiniteError(
            f"Non-finite {quantity}{where} in environment {row if environments is None else environments[row]} at step {step} "
            f"of the rollout: {shown}. Likely cause: {cause}. The policy has not been changed by it."
        )
    return None


def not_finite(array: Observations[NumpyArray]) -> tuple[int, str | None, str] | None:
    """
    The first row that is not finite.

    :param array: first axis rows, or a dict of such
    :return: its number, its key in the dict, and the row as text; None if all is finite
    """
    for key, part in array.items() if isinstance(array, dict) else [(None, array)]:
        part = np.asarray(part)
        if np.issubdtype(part.dtype, np.inexact) and not np.isfinite(part).all():
            row = int(np.flatnonzero(~np.isfinite(part.reshape(len(part), -1)).all(1))[0])
            return row, key, np.array2string(part[row], threshold=8, precision=4)
    return None


def check_rows(buffer: RolloutBuffer, start: int, stop: int, check_observations: bool = True) -> None:
    """
    Raise an error unless all of these steps of a rollout are finite. Many at once cost little more than one.

    Actions are looked at sooner, before an environment gets them. An infinite observation may leave a tanh as a finite number.

    :param buffer: into which the steps have been stored
    :param start: first step to look at
    :param stop: the step after the last one
    :param check_observations: whether observations have to be finite
    :raises NonFiniteError: naming the first step and environment, and what was the first to go wrong there
    """
    quantities = {
        "observation": buffer.observations,
        "value": buffer.values,
        "action": buffer.actions,
        "log_prob": buffer.log_probs,
        "reward": buffer.rewards,
    }
    looked_at = [array for name, array in quantities.items() if check_observations or name != "observation"]
    arrays = [part for array in looked_at for part in (array.values() if isinstance(array, dict) else [array])]
    if all(_sum_is_finite(array[start:stop]) for array in arrays):
        return
    for step in range(start, stop):
        of_step = {name: _rows(array, step) for name, array in quantities.items()}
        error = explain(step, check_observations=check_observations, environments=None, **of_step)
        if error is not None:
            raise error


def _sum_is_finite(array: NumpyArray) -> bool:
    """
    A quick look: False if an entry is not finite, and rarely also where their sum overflows.

    :param array: any shape and type
    :return: True if the sum of all entries is finite
    """
    if not np.issubdtype(array.dtype, np.inexact):
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(float(np.add.reduce(array, axis=None)))


def _rows(array: Observations[NumpyArray], rows: int | slice) -> Observations[NumpyArray]:
    """
    Some rows of an array, or of each array of a dict.

    :param array: first axis rows
    :param rows: a number or a slice
    :return: the rows
    """
    return {key: part[rows] for key, part in array.items()} if isinstance(array, dict) else array[rows]


class RolloutGuard:
    """
    Raises an error for what is not finite in one rollout, and names what was the first to be so.

    :param buffer: into which the steps are stored
    :param n_steps: number of steps of the rollout
    :param check_observations: whether observations have to be finite
    :param in_rows: whether the n-th step is stored in the buffer's n-th row, as SB3's buffers do it
    """

    def __init__(self, buffer: RolloutBuffer, n_steps: int, check_observations: bool, in_rows: bool) -> None:
        self.buffer, self.n_steps, self.check_observations, self.in_rows = buffer, n_steps, check_observations, in_rows
        self.stored = self.checked = 0

    def note_stored(self) -> None:
        """
        Count a step that has been stored, and look at the last ones from time to time.

        :raises NonFiniteError: if one of them is not finite
        """
        self.stored += 1
        if self.in_rows and (self.stored % STEPS_PER_CHECK == 0 or self.stored == self.n_steps):
            check_rows(self.buffer, self.checked, self.stored, self.check_observations)
            self.checked = self.stored

    def check(self, environments: Sequence[int] | None = None, **quantities: Observations[NumpyArray]) -> None:
        """
        Look at all that has not been looked at, in the order in which it came about.

        :param environments: see :func:`explain`
        :param quantities: of the step that has not been stored yet, see :func:`explain`
        :raises NonFiniteError: if something is not finite
        """
        if self.in_rows:
            check_rows(self.buffer, self.checked, self.stored, self.check_observations)
        error = explain(self.stored, check_observations=self.check_observations, environments=environments, **quantities)
        if error is not None:
            raise error
