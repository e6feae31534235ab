"""torch's check that a function waits for nothing holds for the whole process, so that other threads must not meet it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch as th

from sb3_policyopt.graphs import CudaGraph


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What torch was told, the first as it was before."""
    told: list[object] = [1]
    monkeypatch.setattr(th.cuda, "get_sync_debug_mode", lambda: told[-1])
    monkeypatch.setattr(th.cuda, "set_sync_debug_mode", told.append)
    return told


@contextmanager
def another_thread() -> Iterator[None]:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_alone_in_the_process(modes: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # whatever other tests have left
    graph = CudaGraph.__new__(CudaGraph)  # its constructor needs a GPU
    with graph.checking():
        assert modes == [1, "error"]
    with pytest.raises(ZeroDivisionError), graph.checking():
        assert 1 / 0
    assert modes == [1, "error", 1, "error", 1]


def test_beside_another_thread(modes: list[object]) -> None:
    graph = CudaGraph.__new__(CudaGraph)
    with another_thread(), graph.checking():
        assert modes == [1]
    assert modes == [1]
