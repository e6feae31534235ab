"""
Which library computes the layers: a rule that measures no time, so that equal scripts run alike.

NumPy's calls cost least, and it computes small work with one thread. torch's calls cost more, and use all threads. The rule
estimates the time of a forward and backward pass of both networks with the objective in either library::

    NumPy    pass + multiplications · product + units · elementwise
    torch    pass + (multiplications · product + units · elementwise) / speed-up

where a unit is one hidden number of one row. The constants were fitted to measurements on 2 and on 16 cores;
``tests/models/test_library.py`` holds those on 16 row by row.

While one library computes, the other has one thread. The threads of a pool go on spinning after their work, and take
the cores from the other pool, which made minibatches of wide networks up to four times as slow. Therefore NumPy's products
never use several threads here: for up to a tenth of a second after them, torch would have the other cores in part only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch as th

from sb3_policyopt.global_state import torch_threads

Library = Literal["numpy", "torch"]

NUMPY_PASS, TORCH_PASS = 500.0, 900.0
"""µs: a pass besides what grows with the rows. 64 wide, 64 rows took 670 and 1,100 on 2 cores."""

WAKE = 10.0
"""µs that each further thread of torch's adds to a pass."""

MILLION = 18.0
"""µs for a million multiplications on one thread, in either library: 14 to 19 on 16 cores, 20 on 2."""

NUMPY_UNIT, TORCH_UNIT = 0.0025, 0.0037
"""µs for a hidden number on one thread: the activation and its slope, the gradient, and the share of the objective."""

SCALING = 0.75
"""t threads make products t ** SCALING times as fast: 16 threads 7 to 8 times, 2 threads 1.7 to 1.9 times."""

MARGIN = 1.15
"""By what factor torch has to be faster: several threads suffer more than one where other programs run."""


class Work(NamedTuple):
    """
    What one row costs.

    :param multiplications: of both networks, forward and backward
    :param units: hidden units of both networks
    """

    multiplications: int
    units: int


def numpy_time(work: Work, rows: int) -> float:
    """
    Estimate the time of a pass on one thread of NumPy.

    :param work: of a row
    :param rows: in the pass
    :return: µs
    """
    return NUMPY_PASS + rows * (work.multiplications * MILLION / 1e6 + work.units * NUMPY_UNIT)


def torch_time(work: Work, rows: int, threads: int) -> float:
    """
    Estimate the time of a pass in torch.

    :param work: of a row
    :param rows: in the pass
    :param threads: of torch
    :return: µs
    """
    grows = rows * (work.multiplications * MILLION / 1e6 + work.units * TORCH_UNIT)
    return TORCH_PASS + WAKE * (threads - 1) + grows / threads**SCALING


def faster_library(work: Work, rows: int, threads: int) -> Library:
    """
    The library that computes.

    :param work: of a row
    :param rows: in a pass
    :param threads: that torch has
    :return: NumPy, unless torch has several threads and is clearly faster
    """
    if threads > 1 and MARGIN * torch_time(work, rows, threads) < numpy_time(work, rows):
        return "torch"
    return "numpy"


class LibraryRule:
    """
    The libraries of the series of passes of one model, and the threads meanwhile. Within a series, another changes nothing.

    :param work: of a row
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self._inside = False
        self.look()

    def look(self) -> None:
        """Note how many threads torch has: call before a rollout and before an update."""
        if not self._inside:
            self.threads = th.get_num_threads()

    def library(self, rows: int) -> Library:
        """
        The library of a series of passes.

        :param rows: in each
        :return: its name
        """
        return faster_library(self.work, rows, self.threads)

    @contextmanager
    def threads_for(self, rows: int) -> Iterator[None]:
        """
        One thread for NumPy's products; and one for torch too while NumPy serves. At the end there are as many as before.

        :param rows: in each pass of the series
        :return: a context
        """
        if self._inside:
            yield
            return
        torch = self.threads if self.library(rows) == "torch" else 1
        self._inside = True
        try:
            with torch_threads(torch):
                yield
        finally:
            self._inside = False
