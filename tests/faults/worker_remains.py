"""What tests of worker processes share."""

import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def nothing_stays_behind() -> Iterator[None]:
    """No process of this one, and no file in /dev/shm but those of tests that run beside this one."""
    before = named_memory()
    yield
    assert multiprocessing.active_children() == []
    assert named_memory() <= before


def named_memory() -> set[Any]:
    """Files of this user's Python in /dev/shm that do not belong to a semaphore, which other tests may use."""
    if not os.path.isdir("/dev/shm"):
        return set()
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}
