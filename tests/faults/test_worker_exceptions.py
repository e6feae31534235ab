"""An exception of an environment in ``SharedMemoryVecEnv`` is the one that ``DummyVecEnv`` would raise."""

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_policyopt.envs import SharedMemoryVecEnv
from sb3_policyopt.errors import WorkerTracebackError

sys.path.insert(0, str(Path(__file__).parent.parent / "envs"))

from worker_remains import nothing_stays_behind  # noqa: F401  a fixture
from worlds import ERRORS, Broken, UnpicklableError, raise_error, raise_unpicklable

pytestmark = pytest.mark.usefixtures("nothing_stays_behind")


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("trainer_steps", [False, True])
def test_an_exception_is_that_of_dummy_vec_env(name: str, trainer_steps: bool) -> None:
    """Its class, message, arguments and attributes, whatever its constructor takes."""
    errors: list[Any] = []
    makes: list[Any] = [DummyVecEnv, functools.partial(SharedMemoryVecEnv, n_workers=1, trainer_steps=trainer_steps)]
    for make in makes:
        env: Any = make([lambda: Broken(1, functools.partial(raise_error, name))])
        env.reset()
        with pytest.raises(Exception) as caught:
            env.step(np.zeros(1, int))
        errors.append(caught.value)
        env.close()
    expected, error = errors
    assert type(error) is type(expected) and str(error) == str(expected)
    names = ("args", "errno", "filename", "value", "axis", "joint", "path", "both", "reason", "__notes__", "__dict__")
    for attribute in names:
        assert getattr(error, attribute, None) == getattr(expected, attribute, None), attribute
    assert isinstance(error.__cause__, WorkerTracebackError) and "In environment 0" in str(error.__cause__)


def test_an_exception_that_cannot_be_sent() -> None:
    env = SharedMemoryVecEnv([lambda: Broken(1, raise_unpicklable)])
    env.reset()
    with pytest.raises(RuntimeError, match=r"environment 0[^$]*UnpicklableError: the gripper is stuck"):
        env.step(np.zeros(1, int))
    env.close()


def test_an_exception_in_this_process_is_handed_over() -> None:
    env = SharedMemoryVecEnv([lambda: Broken(1, raise_unpicklable)], trainer_steps=True)
    env.reset()
    with pytest.raises(UnpicklableError, match="the gripper is stuck") as caught:
        env.step(np.zeros(1, int))
    assert caught.value.lock.acquire(blocking=False)
    assert caught.traceback[-1].name == "raise_unpicklable"
    env.close()
