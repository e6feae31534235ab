"""What can go wrong around a training: it ends with an error that says what, and leaves everything usable."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback
from sb3_policyopt.errors import WorkerDiedError
from sb3_policyopt.global_state import SMALL, blas_thread_functions, threads_for, unvalidated
from sb3_policyopt.saving.checkpoint_file import newest

ALGORITHMS = [PPO, TRPO]
FASTEST = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


class BrokenWorld(Exception):
    pass


class Counter(gym.Env):
    """Observes its number of steps; ``fault`` is called before the step of that number."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, fault_at: Any = None, fault: Any = None) -> None:
        self.fault_at, self.fault = fault_at, fault
        self.total = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.total += 1
        if self.total == self.fault_at:
            self.fault()
        self.steps += 1
        return np.full(1, self.steps, np.float32), float(action), self.steps == 7, False, {}


def raise_broken_world() -> None:
    raise BrokenWorld("the gripper is stuck")


def end_slowly() -> None:
    """As a large process does, which closes its files long before the system has taken its memory back."""
    os.closerange(3, 1024)
    time.sleep(0.5)
    os._exit(3)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def assert_survived(model: Any, folder: Path | None = None) -> None:
    """Finite parameters, a model that can be saved and loaded, and a checkpoint to go on from."""
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = type(model).load(file)
    for saved, restored in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert th.equal(saved, restored)
    if folder is not None:
        checkpoint = newest(folder)
        assert checkpoint is not None and checkpoint.state["run"]["algorithm"] == type(model).__name__


def learn(model: Any, folder: Path, total: int = 160, callbacks: Any = ()) -> Any:
    return model.learn(total, callback=[ResumableCheckpointCallback(folder, save_freq=32), *callbacks])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_environment_that_raises(tmp_path: Path, algorithm: Any) -> None:
    venv = DummyVecEnv([Counter, lambda: Counter(50, raise_broken_world)])
    model = algorithm("MlpPolicy", venv, n_steps=16, batch_size=16)
    with pytest.raises(BrokenWorld, match="the gripper is stuck"):
        learn(model, tmp_path)
    assert_survived(model, tmp_path)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps >= 98 + 64


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (raise_broken_world, "environment 1 ended with exit code 1. If an exception in the environment was the cause"),
        (kill_myself, "environment 1 was killed by signal 9"),
    ],
)
def test_a_worker_that_dies(tmp_path: Path, fault: Any, named: str) -> None:
    venv = SubprocVecEnv([Counter, lambda: Counter(50, fault)])
    workers = list(venv.processes)
    model = PPO("MlpPolicy", venv, n_steps=16, batch_size=16)
    with pytest.raises(WorkerDiedError, match=named):
        learn(model, tmp_path)
    assert not any(process.is_alive() for process in workers)
    venv.close()  # as scripts do in the end
    assert_survived(model, tmp_path)


def test_a_worker_that_takes_its_time_to_die(tmp_path: Path) -> None:
    """Its connection and the sentinel of its process close before its exit code is known: a bare EOFError came instead."""
    venv = SubprocVecEnv([lambda: Counter(50, end_slowly)], start_method=FASTEST)
    model = PPO("MlpPolicy", venv, n_steps=16, batch_size=16)
    with pytest.raises(WorkerDiedError, match="environment 0 ended with exit code 3"):
        learn(model, tmp_path)
    assert venv.closed


class RaisingCallback(BaseCallback):
    def __init__(self, hook: str, call: Any, error: Any) -> None:
        super().__init__()
        self.hook, self.call, self.error, self.calls = hook, call, error, 0
        setattr(self, hook, self._maybe_raise)

    def _maybe_raise(self) -> Any:
        self.calls += 1
        if self.calls == self.call:
            raise self.error
        return True

    def _on_step(self) -> Any:
        return True


@pytest.mark.parametrize(
    ("hook", "call"),
    [("_on_training_start", 1), ("_on_rollout_start", 3), ("_on_step", 41), ("_on_rollout_end", 2), ("_on_training_end", 1)],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_callback_that_raises(tmp_path: Path, algorithm: Any, hook: str, call: Any) -> None:
    model = algorithm("MlpPolicy", DummyVecEnv([Counter, Counter]), n_steps=16, batch_size=16)
    with pytest.raises(BrokenWorld):
        learn(model, tmp_path, callbacks=[RaisingCallback(hook, call, BrokenWorld())])
    assert_survived(model, None if hook == "_on_training_start" else tmp_path)
    model.learn(32, reset_num_timesteps=False)


@contextmanager
def pressing_ctrl_c(after: float) -> Iterator[None]:
    """Press it after some seconds, and again where Python has ignored it, as it does in destructors."""
    done = threading.Event()

    def press() -> None:
        done.wait(after)
        while not done.is_set():
            os.kill(os.getpid(), signal.SIGINT)
            done.wait(2)

    # A shell has its background jobs ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="there the signal would end the process")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("engine", ["autograd", "closed_form"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_interruption_at_any_moment(tmp_path: Path, algorithm: Any, engine: str, seed: int) -> None:
    """Ctrl-C raises KeyboardInterrupt between any two instructions; here another thread presses it at a random moment."""
    model = algorithm("MlpPolicy", DummyVecEnv([Counter, Counter]), n_steps=16, batch_size=16, engine=engine)
    with pytest.raises(KeyboardInterrupt), pressing_ctrl_c(np.random.default_rng(seed).uniform(0.001, 0.2)):
        learn(model, tmp_path, total=10**7)
    assert_survived(model)
    assert th.is_grad_enabled()
    if checkpoints := sorted(tmp_path.glob("*.zip")):
        assert newest(tmp_path) is not None
        assert all(path.exists() for path in checkpoints)  # none was torn
    model.learn(32, reset_num_timesteps=False)
    assert_survived(model)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_interruption_between_a_switch_and_its_with_leaves_no_switch_behind(algorithm: Any) -> None:
    """Ctrl-C in the first instruction of ``no_grad`` turned gradients off for the rest of the process."""

    class Switch(BaseCallback):
        def _on_step(self) -> bool:
            th.set_grad_enabled(False)
            for switch in lost:
                switch.__enter__()
            assert th.distributions.Distribution._validate_args is False and get_threads() == 1
            raise KeyboardInterrupt

    checks = th.distributions.Distribution._validate_args
    get_threads, set_threads = blas_thread_functions() or (lambda: 1, lambda n: None)
    before = get_threads()
    set_threads(2)
    n_threads = get_threads()
    lost = [unvalidated(), threads_for(SMALL + 1)]
    model = algorithm("MlpPolicy", DummyVecEnv([Counter]), n_steps=16, batch_size=16, engine="autograd")
    with pytest.raises(KeyboardInterrupt):
        model.learn(32, callback=Switch())
    assert th.is_grad_enabled() and th.distributions.Distribution._validate_args == checks and get_threads() == n_threads
    model.learn(32)
    set_threads(before)


def test_trpo_interrupted_in_the_line_search_keeps_the_old_policy() -> None:
    model = TRPO("MlpPolicy", DummyVecEnv([Counter]), n_steps=32, batch_size=16).learn(32)
    before = [parameter.clone() for parameter in model.policy.mlp_extractor.policy_net.parameters()]
    used: Any = model.prepare_engine()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    used.surrogate_and_kl = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.train()
    after = model.policy.mlp_extractor.policy_net.parameters()
    assert all(th.equal(old, new) for old, new in zip(before, after, strict=True))


class Slow(Counter):
    def step(self, action: Any) -> Any:
        if self.total == 20:
            time.sleep(1.0)
        return super().step(action)


@pytest.mark.skipif(os.name == "nt", reason="there the signal would end the process")
def test_results_that_were_under_way_are_not_mixed_up() -> None:
    """After an interruption in the middle of a step, SB3 would take the answer to that step for the next observation."""
    venv = SubprocVecEnv([Slow, Slow], start_method=FASTEST)
    model = PPO("MlpPolicy", venv, n_steps=16, batch_size=16)
    model.learn(16)  # the workers have started
    with pytest.raises(KeyboardInterrupt), pressing_ctrl_c(0.6):
        model.learn(10**6)
    np.testing.assert_array_equal(venv.reset(), np.zeros((2, 1)))
    np.testing.assert_array_equal(venv.step(np.zeros(2, int))[0], np.ones((2, 1)))
    venv.close()


def test_an_answer_that_was_not_read_before_an_interruption_is_discarded() -> None:
    """``env_method`` and ``get_attr`` send to all workers before they read, and do not say so as ``step_async`` does."""

    class InterruptedWhileAsking(BaseCallback):
        def _on_step(self) -> bool:
            for remote in venv.remotes:
                remote.send(("get_attr", "steps"))
            raise KeyboardInterrupt

    venv = SubprocVecEnv([Counter, Counter], start_method=FASTEST)
    model = PPO("MlpPolicy", venv, n_steps=16, batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        model.learn(64, InterruptedWhileAsking())
    assert venv.get_attr("total") == [1, 1]
    model.learn(32)
    venv.close()


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_world import *

class Report(BaseCallback):
    def _on_step(self):
        if self.n_calls == 20:
            print(*[process.pid for process in self.training_env.processes], flush=True)
        return True

if __name__ == "__main__":
    venv = SubprocVecEnv([Counter] * 2)
    PPO("MlpPolicy", venv, n_steps=16, batch_size=16).learn(10**7, callback=Report())
"""


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def running(pid: int) -> Any:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_no_orphaned_processes(tmp_path: Path, how: signal.Signals) -> None:
    """
    Ctrl-C reaches the script and its workers; a kill reaches the script alone.

    The workers are started as SB3 does by default. With ``start_method="fork"`` each of them holds the other ends of its
    siblings' pipes, so that none notices that the script is gone.
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(tests=os.path.dirname(__file__)))
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = [int(pid) for pid in first_line(process).split()]
    assert len(workers) == 2
    assert all(map(running, workers))
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    if how == signal.SIGINT:
        assert "KeyboardInterrupt" in errors
    deadline = time.monotonic() + 20
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, workers))
