"""Ranks of one host exchange in shared memory, those of several hosts through the network, with the same results."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch import run

from sb3_policyopt.parallel import mailboxes
from sb3_policyopt.parallel.mailboxes import CAPACITY, Mailboxes, Place

here_only = pytest.mark.skipif(mailboxes.host() is None, reason="needs Linux on x86-64")
DTYPES = st.sampled_from([np.float32, np.float64, np.int64])


def ignore(seconds: float) -> None:
    """Report no failure."""


@contextmanager
def memory(n: int) -> Iterator[Any]:
    place = mailboxes.create(n)
    assert place is not None
    try:
        yield place
    finally:
        os.close(place.descriptor)


def on_all_ranks(n: int, speak: Any, check: Any = ignore) -> Any:
    """What ``speak(mailboxes, rank)`` returns on each of n ranks, which here are threads."""
    with memory(n) as place, ThreadPoolExecutor(n) as pool:
        boxes = [Mailboxes(place, rank, [os.getpid()] * n, check) for rank in range(n)]
        return [ended.result() for ended in [pool.submit(speak, boxes[rank], rank) for rank in range(n)]]


@pytest.mark.parametrize(
    ("n", "way"),
    [
        pytest.param(3, "one_host", marks=here_only),
        (2, "several_hosts"),
        pytest.param(2, "one_host", marks=[here_only, pytest.mark.slow]),
        pytest.param(3, "several_hosts", marks=pytest.mark.slow),
    ],
)
def test_all_exchanges_give_what_they_say(n: int, way: str) -> None:
    for ended in run(n, "exchanges.py", way):
        assert ended.code == 0, ended.output
        assert json.loads(ended.output.splitlines()[-1]) == {"in memory": way == "one_host", "wrong": []}


@here_only
@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 300), DTYPES), max_size=6), st.integers(0, 2**32 - 1))
def test_sums_have_the_same_bits_on_all_ranks(n: int, messages: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    said = [[(1000 * random.standard_normal((n, size))).astype(dtype) for size, dtype in messages] for _ in range(2)]

    def speak(boxes: Any, rank: int) -> Any:
        sums, maxima = ([message[rank].copy() for message in messages] for messages in said)
        for one, other in zip(sums, maxima, strict=True):
            boxes.reduce_(one, np.add)
            boxes.reduce_(other, np.maximum)
        return sums, maxima

    for sums, maxima in on_all_ranks(n, speak):
        for one, all_said in zip(sums, said[0], strict=True):
            expected = all_said[0].copy()
            for theirs in all_said[1:]:
                expected += theirs
            assert one.dtype == expected.dtype and one.tobytes() == expected.tobytes()
        for other, all_said in zip(maxima, said[1], strict=True):
            np.testing.assert_array_equal(other, all_said.max(axis=0))


@here_only
def test_a_rank_that_hurries_overwrites_nothing_that_others_still_read() -> None:
    def speak(boxes: Any, rank: int) -> Any:
        sums = []
        for k in range(200):
            if (k + rank) % 7 == 0:
                time.sleep(0.0005)
            numbers = np.full(50, 10.0 * k + rank)
            boxes.reduce_(numbers, np.add)
            sums.append(numbers)
        return sums

    for sums in on_all_ranks(3, speak):
        np.testing.assert_array_equal(sums, [np.full(50, 30 * k + 3) for k in range(200)])


@here_only
@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (lambda boxes: boxes.reduce_(np.zeros(3), np.add), lambda boxes: boxes.reduce_(np.zeros(4), np.add), "32 bytes"),
        (lambda boxes: boxes.reduce_(np.zeros(2), np.add), lambda boxes: boxes.reduce_(np.zeros(2, int), np.add), "of int64"),
        (lambda boxes: boxes.broadcast_(np.zeros(2)), lambda boxes: boxes.reduce_(np.zeros(2), np.add), "reduces 16 bytes"),
        (lambda boxes: boxes.gather(b"x"), lambda boxes: boxes.broadcast_(np.zeros(2)), "rank 0 gathers, rank 1 receives"),
    ],
)
def test_messages_of_another_length_or_kind_are_refused_by_all(first: Any, second: Any, said: str) -> None:
    """Each rank read what it took for its own kind of message."""

    def speak(boxes: Any, rank: int) -> str:
        for _ in range(2):  # one in each of the two mailboxes
            boxes.reduce_(np.zeros(5), np.add)
        with pytest.raises(ValueError, match="the ranks exchange different things") as error:
            (first, second)[rank](boxes)
        return str(error.value)

    def check(seconds: float) -> None:
        assert seconds < 120, "the other rank has not come, as it failed otherwise"

    mine, theirs = on_all_ranks(2, speak, check)
    assert mine == theirs and said in mine


@here_only
@pytest.mark.parametrize("length", [0, 1, CAPACITY - 8, CAPACITY - 7])
def test_a_message_is_gathered_if_it_fits(length: Any) -> None:
    messages = [b"x" * length, b"", b"yes"]
    for gathered in on_all_ranks(3, lambda boxes, rank: boxes.gather(messages[rank])):
        assert gathered == (messages if length <= CAPACITY - 8 else None)


@here_only
def test_a_waiting_rank_checks_the_others() -> None:
    waited = []

    def check(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            raise RuntimeError("they will not come")

    with memory(2) as place:
        boxes = Mailboxes(place, 0, [os.getpid()] * 2, check)
        with pytest.raises(RuntimeError, match="they will not come"):
            boxes.reduce_(np.zeros(1), np.add)
    assert 0 < waited[0] < waited[1]


SPEAK_ONCE = """
import json, os, sys
import numpy as np
from sb3_policyopt.parallel.mailboxes import Mailboxes, Place
place, first = json.loads(sys.argv[1])
boxes = Mailboxes(Place(*place), 1, [first, os.getpid()], lambda seconds: None)
numbers = np.array([2.0])
boxes.reduce_(numbers, np.add)
assert numbers == 3
"""


@here_only
def test_what_a_process_has_said_counts_after_its_end_and_nothing_more_comes() -> None:
    with memory(2) as place:
        other = subprocess.Popen([sys.executable, "-c", SPEAK_ONCE, json.dumps([place, os.getpid()])])
        boxes = Mailboxes(place, 0, [os.getpid(), other.pid], ignore)
        numbers = np.array([1.0])
        boxes.reduce_(numbers, np.add)
        assert numbers == 3
        # Its exit status has not been read, so the operating system still lists it.
        with pytest.raises(RuntimeError, match="a process has ended"):
            boxes.reduce_(numbers, np.add)
        assert other.wait() == 0
    with memory(2) as place:
        with pytest.raises(RuntimeError, match="a process has ended"):
            Mailboxes(place, 1, [other.pid, os.getpid()], ignore).reduce_(numbers, np.add)


@here_only
def test_memory_that_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with memory(1) as place:
        Mailboxes(place, 0, [os.getpid()], ignore)
        for unreachable in (place._replace(host="elsewhere"), place._replace(descriptor=10_000)):
            with pytest.raises(OSError):
                Mailboxes(unreachable, 0, [os.getpid()], ignore)
    monkeypatch.setattr(mailboxes, "CAPACITY", 2**60)
    assert mailboxes.create(2) is None  # more than there is


@here_only
def test_nothing_stays_behind() -> None:
    before = set(os.listdir("/dev/shm"))
    with memory(2) as place:
        assert isinstance(place, Place)
        assert set(os.listdir("/dev/shm")) <= before
