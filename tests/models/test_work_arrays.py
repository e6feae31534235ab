"""Work arrays of a trunk: the same ones for the same number of samples, and not ever more of them."""

import numpy as np
import pytest

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.models.networks.activations import tanh
from sb3_policyopt.models.networks.layers import MOST_ENTRIES, MOST_SIZES, Trunk


def trunk(keeps_work: bool = False) -> Trunk[NumpyArray]:
    made: Trunk[NumpyArray] = Trunk([4, 1024], tanh, [0])
    made.keeps_work = keeps_work
    return made


LIKE = np.zeros(1, np.float32)


@pytest.mark.parametrize("keeps_work", [False, True])
def test_large_ones_of_other_numbers_of_samples_are_forgotten(keeps_work: bool) -> None:
    of = trunk(keeps_work)
    rows = MOST_ENTRIES // 1024 // 2 + 1
    first = of.work("hidden", 1, rows, LIKE)
    second = of.work("slope", 1, rows, LIKE)  # of the same number of samples: a pass needs both
    assert of.work("hidden", 1, rows, LIKE) is first and of.work("slope", 1, rows, LIKE) is second
    for more in range(1, MOST_SIZES):
        of.work("hidden", 1, rows + more, LIKE)
        assert of.work("hidden", 1, rows, LIKE) is first  # so many numbers of samples an update has
    of.work("hidden", 1, rows + MOST_SIZES, LIKE)
    assert (of.work("hidden", 1, rows, LIKE) is first) == keeps_work


@pytest.mark.parametrize("keeps_work", [False, True])
def test_many_small_ones_are_forgotten(keeps_work: bool) -> None:
    of = trunk(keeps_work)
    first = of.work("hidden", 1, 1, LIKE)
    for rows in range(2, 300):
        of.work("hidden", 1, rows, LIKE)
    assert (of.work("hidden", 1, 1, LIKE) is first) == keeps_work
