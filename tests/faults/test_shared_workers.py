"""What can go wrong around ``SharedMemoryVecEnv``: an error that says what, and nothing stays behind."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecEnv

from sb3_policyopt import PPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback
from sb3_policyopt.envs import SharedMemoryVecEnv
from sb3_policyopt.envs.shared import memory
from sb3_policyopt.errors import WorkerDiedError, WorkerTracebackError
from sb3_policyopt.saving.checkpoint_file import newest

sys.path.insert(0, str(Path(__file__).parent.parent / "envs"))

from worker_remains import nothing_stays_behind  # noqa: F401  a fixture
from worlds import (
    Broken,
    StuckError,
    hang,
    kill_myself,
    leave,
    nap,
    raise_stuck,
)

pytestmark = pytest.mark.usefixtures("nothing_stays_behind")

START_METHODS = multiprocessing.get_all_start_methods()
FASTEST = "fork" if "fork" in START_METHODS else "spawn"
Shared = functools.partial(SharedMemoryVecEnv, start_method=FASTEST)
linux = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
posix = pytest.mark.skipif(os.name == "nt", reason="there the signal would end the process")


@pytest.fixture(params=["busy wait", "by pipe"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "by pipe":
        monkeypatch.setattr(memory, "SPINS", False)


def zeros(env: VecEnv) -> np.ndarray:
    return np.zeros(env.num_envs, int)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("trainer_steps", [False, True])
@pytest.mark.parametrize("number", [1, 2])
def test_an_environment_that_raises_in_a_step(trainer_steps: bool, number: int) -> None:
    makers: list[Callable[[], Any]] = [Broken] * 4
    makers[number] = lambda: Broken(3, raise_stuck)
    env = Shared(makers, n_workers=2, trainer_steps=trainer_steps)
    env.reset()
    env.step(zeros(env))
    env.step(zeros(env))
    with pytest.raises(StuckError, match="the gripper is stuck") as raised:
        env.step(zeros(env))
    cause = raised.value.__cause__
    assert isinstance(cause, WorkerTracebackError)
    assert f"environment {number}" in str(cause) and "in raise_stuck" in str(cause)
    np.testing.assert_array_equal(env.reset(), np.zeros((4, 1)))  # as good as new
    np.testing.assert_array_equal(env.step(zeros(env))[0], np.ones((4, 1)))
    env.close()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("trainer_steps", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_an_environment_that_raises_in_reset(trainer_steps: bool, number: int) -> None:
    makers: list[Callable[[], Any]] = [Broken] * 2
    makers[number] = lambda: Broken(fault=raise_stuck, fault_in_reset=True)
    env = Shared(makers, n_workers=2, trainer_steps=trainer_steps)
    with pytest.raises(StuckError):
        env.reset()
    env.set_attr("fault_in_reset", False)
    np.testing.assert_array_equal(env.reset(), np.zeros((2, 1)))
    env.set_attr("fault_in_reset", True, indices=number)
    for _ in range(6):
        env.step(zeros(env))
    with pytest.raises(StuckError):  # the seventh step ends the episode
        env.step(zeros(env))
    env.set_attr("fault_in_reset", False)
    np.testing.assert_array_equal(env.reset(), np.zeros((2, 1)))
    env.close()


@pytest.mark.parametrize("trainer_steps", [False, True])
def test_an_info_that_cannot_be_sent(trainer_steps: bool) -> None:
    class Locked(Broken):
        def step(self, action: Any) -> Any:
            return (*super().step(action)[:4], {"lock": threading.Lock()})

    env = Shared([Locked], trainer_steps=trainer_steps)
    env.reset()
    with pytest.raises(TypeError, match="lock"):
        env.step(zeros(env))
    env.close()


@pytest.mark.parametrize("trainer_steps", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_an_environment_that_cannot_be_made(tmp_path: Path, trainer_steps: bool, number: int) -> None:
    def stuck() -> Any:
        raise StuckError("no gripper")

    makers: list[Callable[[], Any]] = [Broken] * 3
    makers[number] = stuck
    with pytest.raises(StuckError, match="no gripper") as raised:
        Shared(makers, n_workers=2, trainer_steps=trainer_steps)
    assert f"environment {number}" in str(raised.value.__cause__)


@pytest.mark.parametrize("trainer_steps", [False, True])
def test_one_environment_for_all(trainer_steps: bool) -> None:
    env = Broken()
    with pytest.raises(ValueError, match="return the same environment"):
        SharedMemoryVecEnv([lambda: env] * 2, start_method=FASTEST, n_workers=1, trainer_steps=trainer_steps)


@pytest.mark.skipif(FASTEST != "fork", reason="is about another way than fork")
def test_a_function_that_cannot_be_sent() -> None:
    lock = threading.Lock()

    def make() -> Any:
        return Broken(fault=lock.acquire)

    with pytest.raises(
        ValueError, match=r"environments 1 to 2 cannot be sent to another process: .*lock.*start_method='fork'"
    ):
        SharedMemoryVecEnv([Broken, make, make], start_method="spawn", n_workers=2)
    env = SharedMemoryVecEnv([make], start_method="fork")
    env.close()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("fault", "how"), [(kill_myself, "environments 2 to 3 was killed by signal 9"), (leave, "2 to 3 ended with exit code 3")]
)
def test_a_worker_that_dies(tmp_path: Path, fault: Callable[..., Any], how: str) -> None:
    env = Shared([Broken, Broken, Broken, lambda: Broken(50, fault)], n_workers=2)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16)
    with pytest.raises(WorkerDiedError, match=how):
        model.learn(10**4, callback=ResumableCheckpointCallback(tmp_path, save_freq=32))
    checkpoint = newest(tmp_path)
    assert checkpoint is not None and checkpoint.state["run"]["algorithm"] == "PPO"
    assert not any(process.is_alive() for process in env.processes)
    env.close()  # as scripts do in the end
    with pytest.raises(RuntimeError, match="closed"):
        env.reset()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("use", ["step", "reset", "get_attr", "close"])
@pytest.mark.parametrize("trainer_steps", [False, True])
def test_a_worker_that_dies_while_nobody_looks(tmp_path: Path, use: str, trainer_steps: bool) -> None:
    file = tmp_path / "closed"
    env = Shared([lambda: Broken(closed_file=file)] * 2, n_workers=2, trainer_steps=trainer_steps)
    env.reset()
    env.step(zeros(env))
    env.processes[-1].kill()
    env.processes[-1].join()
    calls: dict[str, Callable[[], Any]] = {
        "step": lambda: env.step(zeros(env)),
        "reset": env.reset,
        "get_attr": lambda: env.get_attr("total"),
    }
    if use in calls:
        with pytest.raises(WorkerDiedError, match="environment 1 was killed by signal"):
            calls[use]()
    env.close()
    if trainer_steps:
        assert file.read_text() == f"{os.getpid()}\n"


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("trainer_steps", [False, True])
def test_a_worker_that_hangs(trainer_steps: bool) -> None:
    env = Shared([Broken, lambda: Broken(2, hang)], n_workers=2, timeout=0.5, trainer_steps=trainer_steps)
    env.reset()
    env.step(zeros(env))
    with pytest.raises(TimeoutError, match=r"environment 1 has not answered for 0.5 seconds"):
        env.step(zeros(env))
    assert env.closed
    env.close()
    env = Shared([lambda: Broken(fault=hang, fault_in_reset=True)], timeout=0.5)
    with pytest.raises(TimeoutError, match="raise `timeout`"):
        env.reset()


@posix
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
@pytest.mark.parametrize("trainer_steps", [False, True])
def test_ctrl_c_at_any_moment(seed: int, trainer_steps: bool) -> None:
    """Afterwards the environments do what they are told, whatever was under way."""
    env = Shared([Broken] * 3, n_workers=2, trainer_steps=trainer_steps)
    random = np.random.default_rng(seed)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(5):
            timer = threading.Timer(random.uniform(0.001, 0.05), os.kill, (os.getpid(), signal.SIGINT))
            start = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                timer.start()
                while time.monotonic() < start + 5:
                    env.reset()
                    for _ in range(random.integers(1, 40)):
                        env.step(np.ones(3, int))
                    env.set_attr("mark", 1)
                raise KeyboardInterrupt  # Python drops the one that comes while it finalises an object
            timer.join()
            if env.workers.broken:  # a signal between the two halves of a message
                break
            np.testing.assert_array_equal(env.reset(), np.zeros((3, 1)))
            for step in range(1, 7):
                observations, rewards, dones, _ = env.step(np.array([0, 1, 0]))
                np.testing.assert_array_equal(observations, np.full((3, 1), step))
                assert rewards.tolist() == [0, 1, 0] and not dones.any()
    finally:
        signal.signal(signal.SIGINT, before)
        env.close()


@posix
@pytest.mark.parametrize("trainer_steps", [False, True])
def test_ctrl_c_during_a_training(trainer_steps: bool) -> None:
    env = Shared([lambda: Broken(40, nap), Broken], n_workers=2, trainer_steps=trainer_steps)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16).learn(16)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer = threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            model.learn(10**7)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    model.learn(64)
    assert model.num_timesteps == 64
    env.close()


@pytest.mark.parametrize("trainer_steps", [False, True])
def test_environments_are_closed(tmp_path: Path, trainer_steps: bool) -> None:
    file = tmp_path / "closed"
    env = Shared([lambda: Broken(closed_file=file)] * 3, n_workers=2, trainer_steps=trainer_steps)
    pids = [os.getpid()] * trainer_steps + [process.pid for process in env.processes]
    env.close()
    assert sorted(map(int, file.read_text().split())) == sorted([pids[0], *[pids[1]] * 2])


def test_environments_that_nobody_closes(tmp_path: Path) -> None:
    """A VecEnv that is only forgotten ends its workers."""
    file = tmp_path / "closed"
    env = Shared([lambda: Broken(closed_file=file)] * 2, n_workers=2)
    processes = env.processes
    env.reset()
    del env
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert len(file.read_text().split()) == 2


SCRIPT = """
import sys
sys.path.insert(0, {envs!r})
from worlds import Broken
from stable_baselines3.common.callbacks import BaseCallback
from sb3_policyopt import PPO
from sb3_policyopt.envs import SharedMemoryVecEnv

class Report(BaseCallback):
    def _on_step(self):
        if self.n_calls == 20:
            print(*[process.pid for process in self.training_env.processes], flush=True)
        return True

def main():
    others = SharedMemoryVecEnv([Broken] * 2, {method!r}, n_workers=2)
    venv = SharedMemoryVecEnv([Broken] * 3, {method!r}, n_workers={n_workers}, trainer_steps={trainer_steps})
    PPO("MlpPolicy", venv, n_steps=16, batch_size=16).learn(10**7, callback=Report())

{guard}
"""
GUARD = 'if __name__ == "__main__":\n    main()'


def script_text(method: str, guard: str, n_workers: int = 2, trainer_steps: bool = False) -> str:
    envs = str(Path(__file__).parent.parent / "envs")
    return SCRIPT.format(envs=envs, method=method, guard=guard, n_workers=n_workers, trainer_steps=trainer_steps)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def running(pid: int) -> Any:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@linux
@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.slow] * (m != "forkserver")) for m in START_METHODS])
@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
@pytest.mark.parametrize("trainer_steps", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_orphaned_processes(tmp_path: Path, method: str, how: signal.Signals, trainer_steps: bool) -> None:
    """Ctrl-C reaches the script and its workers; a kill reaches the script alone, while its workers step."""
    script = tmp_path / "script.py"
    script.write_text(script_text(method, GUARD, 2 + trainer_steps, trainer_steps))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = [int(pid) for pid in first_line(process).split()]
    assert len(workers) == 2 and all(map(running, workers))
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    deadline = time.monotonic() + 60
    while any(map(running, [process.pid, *workers])) and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.05)
    assert not any(map(running, workers))
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ("KeyboardInterrupt" in errors) == (how == signal.SIGINT)


def test_a_script_without_its_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(script_text("spawn", "main()"))
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert "WorkerDiedError" in ended.stderr and "if __name__ == '__main__'" in ended.stderr
