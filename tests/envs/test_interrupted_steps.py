"""A step that is interrupted, wherever between two accesses of a worker to the shared memory the trainer goes on."""

import mmap
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from worlds import FASTEST, Broken

from sb3_policyopt.envs.shared import memory
from sb3_policyopt.envs.shared.memory import Block, Plan
from sb3_policyopt.envs.shared.worker import Worker
from sb3_policyopt.envs.shared.workers import Workers

pytestmark = pytest.mark.fast


class WaitsError(Exception):
    """The trainer waits for an answer, or a worker for an order."""


class Numbers:
    """The numbers in the shared memory as the worker sees them. Before one of its accesses, the trainer does something."""

    def __init__(self, held: Any, at: int, trainer: Callable[[], None]) -> None:
        self.held, self.left, self.trainer = held, at, trainer

    def access(self) -> Any:
        self.left -= 1
        if self.left == 0:
            self.trainer()
        return self.held

    def __getitem__(self, index: int) -> int:
        return int(self.access()[index])

    def __setitem__(self, index: int, value: int) -> None:
        self.access()[index] = value


class WorkersEnd:
    """The worker's end of the pipe, and what both have sent."""

    def __init__(self) -> None:
        self.orders: list[bytes] = []
        self.answers: list[bytes] = []
        self.send_bytes = self.answers.append

    def recv_bytes(self) -> bytes:
        if not self.orders:
            raise WaitsError
        return self.orders.pop(0)


class Scene:
    """A trainer and a worker, which take turns in this process."""

    def __init__(self, at: int) -> None:
        plan = Plan([(0, 1)], [(None, (1,), np.dtype(np.float32))], 8, spins=True)
        block = Block(plan, mmap.mmap(-1, memory.size(plan)))
        self.pipe = WorkersEnd()
        self.trainer = Workers([Broken], FASTEST, 1, trainer_steps=True)  # starts no process
        self.trainer.own, self.trainer.spins = None, True
        handle: Any = SimpleNamespace(number=0, numbers=block.numbers_of(0), infos=block.infos[0], received=[])
        handle.connection, handle.has_sent = SimpleNamespace(send_bytes=self.pipe.orders.append), self.wait
        self.trainer.all.append(handle)
        pipe: Any = self.pipe
        self.worker: Any = Worker(pipe, 0, 0)
        self.worker.make([Broken])
        self.worker.attach(plan, block)
        self.worker.set_action_layout(np.dtype(np.int64), (1,))
        self.numbers = block.numbers_of(0)
        seen: Any = Numbers(self.numbers, at, self.interrupt)
        self.worker.numbers, self.worker.infos, self.worker.spins = seen, handle.infos, True

    def wait(self, timeout: float) -> bool:
        raise WaitsError

    def interrupt(self) -> None:
        with pytest.raises(WaitsError):
            self.trainer.finish_interrupted()

    def let_worker_run(self) -> int:
        """Until it waits for an order; returns the number of its steps."""
        with pytest.raises(WaitsError):
            self.worker.serve()
        return int(self.worker.envs[0].total)


@pytest.mark.parametrize("at", range(1, 13))
def test_a_step_is_made_once_or_not_at_all_and_the_trainer_gets_its_answer(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that took the number of the next order for that of the step would make that and give no answer to the order."""
    monkeypatch.setattr(memory, "BUSY_WAIT", 0)
    scene = Scene(at)
    scene.trainer.begin_step()
    steps = scene.let_worker_run()
    if scene.worker.numbers.left > 0:  # it sleeps before so many accesses
        scene.interrupt()
        assert scene.let_worker_run() == steps
    assert steps == (at > 1)
    assert scene.trainer.number in [pickle.loads(answer)[0] for answer in scene.pipe.answers if answer]
    scene.trainer.unfinished = False
    scene.trainer.begin_step()
    assert scene.let_worker_run() == steps + 1
    assert scene.numbers[Block.DONE] == scene.trainer.number
