"""``SharedMemoryVecEnv`` against ``DummyVecEnv``: the same numbers, types and infos, step by step."""

import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from worlds import FASTEST, INFOS, SPACES, START_METHODS, Broken, World, assert_same

from sb3_policyopt.envs import SharedMemoryVecEnv
from sb3_policyopt.envs.shared import memory
from sb3_policyopt.envs.shared.workers import split

Shared = functools.partial(SharedMemoryVecEnv, start_method=FASTEST)


@pytest.fixture(params=["busy wait", "by pipe", "trainer steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How trainer and workers meet: as here, or as where memory gives no order; and as if the trainer stepped by default."""
    if request.param == "by pipe":
        monkeypatch.setattr(memory, "SPINS", False)
    elif request.param == "trainer steps":
        init = functools.partialmethod(SharedMemoryVecEnv.__init__, trainer_steps=True)
        monkeypatch.setattr(SharedMemoryVecEnv, "__init__", init)
    elif not memory.SPINS:
        pytest.skip("needs x86-64")


def sampled_actions(
    space: spaces.Space[Any], n_steps: int, n_envs: int, seed: int, as_list: bool
) -> Iterator[Callable[..., Any]]:
    """Arrays as algorithms give them (float32 where the space is one of bits), or lists of single actions."""
    space.seed(seed)
    for _ in range(n_steps):
        actions = [space.sample() for _ in range(n_envs)]
        if as_list or isinstance(space, (spaces.Dict, spaces.Tuple)):
            yield lambda actions=actions: [a.copy() if isinstance(a, np.ndarray) else a for a in actions]
        else:
            array = np.array(actions, np.float32 if isinstance(space, spaces.MultiBinary) else None)
            yield array.copy


@pytest.mark.thinned(2)
@pytest.mark.parametrize("observations", SPACES)
@given(
    actions=st.sampled_from(["discrete", "vector", "doubles", "multi_discrete", "multi_binary"]),
    infos=st.lists(st.sampled_from(list(INFOS)), min_size=1, max_size=5),
    n_workers=st.integers(1, 4),
    flags=st.sampled_from([bool, np.bool_]),
    as_list=st.booleans(),
    spins=st.booleans(),
    trainer_steps=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_every_step_is_that_of_dummy_vec_env(
    observations: str,
    actions: str,
    infos: list[str],
    n_workers: int,
    flags: type[Any],
    as_list: bool,
    spins: bool,
    trainer_steps: bool,
    seed: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "SPINS", spins and memory.SPINS)
        make: list[Callable[[], Any]] = [functools.partial(World, observations, actions, info, flags) for info in infos]
        envs = dummy, shared = DummyVecEnv(make), Shared(make, n_workers=n_workers, trainer_steps=trainer_steps)
    for env in envs:
        env.seed(seed)
        env.set_options({"difficulty": 3})
    assert_same(dummy.reset(), shared.reset())
    assert_same(dummy.get_attr("options"), shared.get_attr("options"))
    for number, copied in enumerate(sampled_actions(dummy.action_space, 25, len(make), seed, as_list)):
        first, second = (env.step(copied()) for env in envs)
        assert_same(first, second)
        assert_same(dummy.reset_infos, shared.reset_infos)
        if number == 12:
            assert_same(dummy.reset(), shared.reset())
            assert_same(dummy.reset_infos, shared.reset_infos)
            assert_same(dummy.env_method("told", 2, times=3), shared.env_method("told", 2, times=3))
    assert_same(dummy.env_method("told"), shared.env_method("told"))
    assert_same(dummy.get_images(), shared.get_images())
    shared.close()


def test_dicts_of_observations_are_of_the_same_type() -> None:
    dummy, shared = DummyVecEnv([lambda: World("dict")] * 2), Shared([lambda: World("dict")] * 2, n_workers=1)
    for env in (dummy, shared):
        env.seed(5)
    assert type(dummy.reset()) is type(shared.reset())
    first, second = (env.step(np.zeros(2, int)) for env in (dummy, shared))
    assert_same(first, second)
    shared.close()


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize("trainer_steps", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_start_methods(start_method: Any, trainer_steps: bool) -> None:
    envs = [
        DummyVecEnv([lambda: World("dict")] * 3),
        SharedMemoryVecEnv([lambda: World("dict")] * 3, start_method, n_workers=2, trainer_steps=trainer_steps),
    ]
    for env in envs:
        env.seed(5)
    assert_same(*(env.reset() for env in envs))
    for _ in range(20):
        assert_same(*(env.step(np.array([0, 3, 1])) for env in envs))
    envs[1].close()
    with pytest.raises(ValueError, match="cannot find context for 'threads'"):
        SharedMemoryVecEnv([World], start_method="threads")


@pytest.mark.usefixtures("way")
def test_attributes_and_methods_of_some() -> None:
    env = Shared([World] * 5, n_workers=2)
    env.reset()
    for _ in range(3):
        env.step(np.zeros(5, int))
    assert not env.has_attr("mood")
    with pytest.raises(AttributeError, match="mood"):
        env.get_attr("mood")
    env.set_attr("mood", ["good"])
    env.set_attr("mood", "bad", indices=[3, -1])
    assert env.has_attr("mood")
    assert env.get_attr("mood") == [["good"], ["good"], ["good"], "bad", "bad"]
    assert env.get_attr("mood", indices=[4, 0, 4]) == ["bad", ["good"], "bad"]
    assert env.get_attr("mood", indices=2) == [["good"]]
    env.env_method("set_wrapper_attr", "steps", 40, indices=range(1, 3))
    assert [steps for _, steps in env.env_method("told", 1, times=2, indices=[2, 1])] == [82, 82]
    with pytest.raises(IndexError):
        env.get_attr("mood", indices=[5])
    env.close()
    mixed = Shared([World, lambda: Monitor(World())])
    assert mixed.env_is_wrapped(Monitor) == [False, True]
    assert mixed.env_is_wrapped(Monitor, indices=1) == [True]
    mixed.close()


def test_each_environment_gets_a_value_of_its_own() -> None:
    env = Shared([World] * 2, n_workers=1)
    env.set_attr("bag", [])
    env.env_method("get_wrapper_attr", "bag")
    env.set_attr("steps", 1, indices=0)
    env.env_method("__setattr__", "bag", ["stone"], indices=0)
    assert env.get_attr("bag") == [["stone"], []]
    env.close()


def test_what_it_says_of_itself() -> None:
    dummy, shared = DummyVecEnv([World] * 3), Shared([World] * 3)
    assert isinstance(shared, SubprocVecEnv)  # as other packages ask
    assert shared.metadata == dummy.metadata == World.metadata
    assert shared.render_mode == "rgb_array"
    shared.reset()
    picture = shared.render()
    assert picture is not None and picture.shape == (8, 8, 3)  # two by two pictures
    shared.close()
    assert shared.closed and not any(process.is_alive() for process in shared.processes)
    shared.close()
    with pytest.raises(RuntimeError, match="closed"):
        shared.reset()


@pytest.mark.usefixtures("way")
def test_returned_arrays_and_given_ones_stay_as_they_are() -> None:
    env = Shared([functools.partial(World, "vector", "vector")] * 3, n_workers=2)
    kept: list[tuple[Any, ...]] = [(env.reset(),)]
    actions = np.zeros((3, 3), np.float32)
    for _ in range(30):
        kept.append(env.step(actions)[:3])
    copies = [[array.copy() for array in arrays] for arrays in kept]
    for _ in range(30):
        env.step(actions)
    assert_same(kept, copies)
    assert not actions.any()  # the environments add to theirs
    env.close()


@pytest.mark.usefixtures("way")
def test_the_two_halves_of_a_step() -> None:
    env = Shared([Broken] * 3, n_workers=2)
    with pytest.raises(RuntimeError, match=r"step_wait\(\) needs"):
        env.step_wait()
    env.reset()
    env.step_async(np.ones(3, int))
    with pytest.raises(RuntimeError, match="twice"):
        env.step_async(np.ones(3, int))
    assert env.get_attr("total") == [1, 1, 1]
    np.testing.assert_array_equal(env.step_wait()[0], np.ones((3, 1)))
    env.step_async(np.ones(3, int))
    np.testing.assert_array_equal(env.reset(), np.zeros((3, 1)))  # a reset does away with the step under way
    np.testing.assert_array_equal(env.step(np.ones(3, int))[0], np.ones((3, 1)))
    env.step_async(np.ones(3, int))
    env.close()


@pytest.mark.usefixtures("way")
def test_a_worker_that_has_slept_goes_on() -> None:
    env = Shared([Broken] * 2, n_workers=2)
    env.reset()
    for step in range(1, 7):
        time.sleep(0.002 * step)
        np.testing.assert_array_equal(env.step(np.zeros(2, int))[0], np.full((2, 1), step))
    env.close()


class Echo(gym.Env):
    """Observes its number of steps and the last action."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(10**6)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return np.zeros(2), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        info = {"steps": self.steps} if self.steps % 3 == 0 else {}
        return np.array([self.steps, action]), float(action), False, False, info


@pytest.mark.usefixtures("way")
def test_no_step_is_lost_or_done_twice() -> None:
    """Some thousand steps with pauses of about the time after which workers sleep."""
    env = Shared([Echo] * 5, n_workers=3)
    env.reset()
    random = np.random.default_rng(0)
    for step in range(1, 2001):
        if step % 50 == 0:
            time.sleep(random.uniform(0, 2e-9 * memory.BUSY_WAIT))
        actions = random.integers(0, 10**6, 5)
        observations, rewards, _, infos = env.step(actions)
        np.testing.assert_array_equal(observations, np.stack([np.full(5, step), actions], axis=1))
        np.testing.assert_array_equal(rewards, actions.astype(np.float32))
        assert [info.get("steps") for info in infos] == [step if step % 3 == 0 else None] * 5
    env.close()


@given(st.integers(1, 40), st.data())
def test_environments_are_shared_out_evenly(n_envs: int, data: Any) -> None:
    n_workers = data.draw(st.integers(1, n_envs))
    bounds = split(n_envs, n_workers)
    assert [env for first, stop in bounds for env in range(first, stop)] == list(range(n_envs))
    sizes = {stop - first for first, stop in bounds}
    assert len(bounds) == n_workers and max(sizes) - min(sizes) <= 1


def test_as_many_workers_as_cores_and_not_more_than_environments() -> None:
    from sb3_policyopt.envs.shared.vec_env import available_cores

    for n_envs in (1, 3):
        env = Shared([Broken] * n_envs)
        assert len(env.processes) == min(n_envs, available_cores())
        env.close()
    env = Shared([Broken] * 2, n_workers=9)
    assert len(env.processes) == 2
    env.close()


def test_where_the_trainer_steps_there_is_one_worker_less() -> None:
    """The trainer has the first environments, and not more than a worker."""
    for n_envs, n_workers, bounds in ((1, 2, [0, 1]), (5, 1, [0, 5]), (5, 2, [0, 2]), (8, 3, [0, 2])):
        env = Shared([World] * n_envs, n_workers=n_workers, trainer_steps=True)
        assert len(env.processes) == min(n_envs, n_workers) - 1
        pids = env.env_method("process")
        assert [number for number, pid in enumerate(pids) if pid == os.getpid()] == list(range(*bounds))
        env.close()
        env.close()
        with pytest.raises(RuntimeError, match="closed"):
            env.reset()


class Hoarder(Broken):
    """Its infos hold a list that it goes on changing."""

    def __init__(self) -> None:
        super().__init__()
        self.hoard: list[int] = []

    def step(self, action: Any) -> Any:
        self.hoard.append(self.total)
        return (*super().step(action)[:4], {"hoard": self.hoard})


@pytest.mark.usefixtures("way")
def test_script_and_environments_have_no_object_in_common() -> None:
    env = Shared([Hoarder] * 4, n_workers=2)
    env.reset()
    kept = [env.step(np.zeros(4, int))[3] for _ in range(3)]
    assert [[info["hoard"] for info in infos] for infos in kept] == [[[0]] * 4, [[0, 1]] * 4, [[0, 1, 2]] * 4]
    bag = ["stone"]
    env.set_attr("bag", bag)
    bag.append("feather")
    env.get_attr("bag")[0].append("feather")
    assert env.get_attr("bag") == [["stone"]] * 4
    env.close()


def test_a_reset_does_away_with_a_step_wherever_it_is_made() -> None:
    """The step is made all the same: it draws random numbers."""
    envs = [Shared([World] * 4, n_workers=2, trainer_steps=trainer_steps) for trainer_steps in (False, True)]
    for env in envs:
        env.seed(1)
        env.reset()
        env.step_async(np.zeros(4, int))
    assert_same(*(env.reset() for env in envs))
    assert_same(*(env.step(np.zeros(4, int)) for env in envs))
    for env in envs:
        env.step_async(np.zeros(4, int))
        env.close()


class Words(Broken):
    observation_space: Any = spaces.Text(5)


def test_wrong_arguments_are_named() -> None:
    wrong: list[dict[str, Any]] = [{"env_fns": []}, {"n_workers": 0}, {"timeout": 0.0}]
    for words in wrong:
        (message,) = words
        with pytest.raises(ValueError, match=message):
            Shared(**({"env_fns": [Broken]} | words))
    with pytest.raises(ValueError, match="arrays of numbers"):
        Shared([Words])
    env: Any = Shared([Broken] * 2)  # Any: steps with lists, too
    env.reset()
    for actions in (np.zeros(3, int), [0]):
        with pytest.raises(ValueError, match="for 2 environments"):
            env.step(actions)
    assert env.step([0, 1])[1].tolist() == [0, 1]
    env.close()
