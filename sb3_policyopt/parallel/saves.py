"""
Models that a script saves between two trainings: rank 0 alone writes them, and the other ranks go on when they are written.

Rank 0 never waits. It publishes how far it is, and another rank that saves a model waits until rank 0 is as far. So rank 0 may
also save alone; and a rank that saves what rank 0 does not goes on when rank 0 trains again, or ends.
"""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from sb3_policyopt.parallel import launcher

if TYPE_CHECKING:  # a build of torch may lack it
    from torch.distributed.distributed_c10d import Store

POSITION = "saves"
"""The key of rank 0's position: the number of trainings that it has begun, and of the saves since."""

END = (float("inf"), 0.0)
"""The position of a rank that does not save any more."""

CHECK_INTERVAL = 0.05
"""Seconds between two looks at rank 0's position."""


class Saves:
    """
    How far this rank is in its script.

    :param store: of all ranks
    :param rank: of this process
    :param timeout: longest time to wait for rank 0
    """

    def __init__(self, store: "Store", rank: int, timeout: timedelta) -> None:
        self.store, self.rank, self.timeout = store, rank, timeout
        self.position = (0.0, 0.0)
        self.in_training = False

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around a training, in which callbacks may save on one rank alone: no rank waits."""
        self._go_to((self.position[0] + 1, 0.0))
        before, self.in_training = self.in_training, True
        try:
            yield
        finally:
            self.in_training = before

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around the saving of a model, which rank 0 does; at its end the others wait for rank 0."""
        if self.in_training or self.position == END:
            yield
            return
        try:
            yield
        finally:
            self._go_to((self.position[0], self.position[1] + 1))
        if self.rank > 0:
            self._wait_for_rank_0()

    def end(self) -> None:
        """Let nobody wait for this rank any more."""
        self._go_to(END)

    def _go_to(self, position: tuple[float, float]) -> None:
        self.position = position
        if self.rank == 0:
            with suppress(RuntimeError):  # the store may have ended
                self.store.set(POSITION, f"{position[0]} {position[1]}")

    def _wait_for_rank_0(self) -> None:
        """Wait until rank 0 is here, too, or further; but not longer than the ranks wait for each other anywhere."""
        seconds = self.timeout.total_seconds()
        until = time.monotonic() + seconds
        with suppress(RuntimeError):  # the store ended with rank 0, which then saves no more
            while not (self.store.check([POSITION]) and _position(self.store.get(POSITION)) >= self.position):
                if time.monotonic() > until:
                    warnings.warn(
                        f"rank 0 did not save the model within {seconds:g} s ({launcher.TIMEOUT}): rank {self.rank} goes on "
                        "without it; call save on all ranks, or on rank 0 alone",
                        stacklevel=2,
                    )
                    return
                time.sleep(CHECK_INTERVAL)


def _position(text: bytes) -> tuple[float, float]:
    trainings, saves = map(float, text.split())
    return trainings, saves
