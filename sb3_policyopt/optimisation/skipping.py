"""When steps are skipped because their loss or gradient is not finite: how many in a row end a training."""

from sb3_policyopt.errors import NonFiniteError
from sb3_policyopt.maths.arrays import Scalar
from sb3_policyopt.maths.terms import as_array

PATIENCE = 8
"""Updates in a row (minibatches of PPO and of the critic) that may be skipped before training stops."""


class SkipCounter:
    """Counts updates that were refused because they were not finite; ends training after several in a row."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def note(self, skipped: list[Scalar]) -> None:
        """
        Take note of a series of updates.

        :param skipped: 1 for each that was skipped, 0 for each that was made; floats or scalar tensors
        :raises NonFiniteError: after ``PATIENCE`` skipped ones in a row
        """
        for flag in as_array(skipped).tolist():
            self.in_a_row = self.in_a_row + 1 if flag else 0
            if self.in_a_row >= PATIENCE:
                self.in_a_row = 0
                raise NonFiniteError(
                    f"{PATIENCE} updates in a row had a non-finite loss or gradient and were skipped; the policy is as the "
                    "last good update left it, and can be saved. Likely cause: rewards or returns on a scale that "
                    "overflows (use VecNormalize), or a custom loss or network that divides by zero or takes the "
                    "logarithm of a number that is not positive."
                )
