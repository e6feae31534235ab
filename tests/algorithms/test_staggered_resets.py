"""Environments begin in different parts of an episode, with every kind of VecEnv, and go on from a checkpoint."""

import inspect
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.callbacks import ResumableCheckpointCallback, StaggeredResets
from sb3_policyopt.envs import SharedMemoryVecEnv, make_envpool
from sb3_policyopt.envs.tensors import TensorPendulum, TensorVecNormalize

STAGGERED = {0: [200, 400], 1: [150, 350], 2: [100, 300, 500], 3: [50, 250, 450]}
"""Of four environments with a limit of 200 steps, whose first episodes end 0, 50, 100 and 150 steps earlier."""


class Ends(BaseCallback):
    """Keeps the steps at which the episodes of each environment end, whether the end is a time limit's, and the lengths."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.stop_after = stop_after
        self.steps: dict[int, list[int]] = {}
        self.lengths: list[int] = []

    def _on_step(self) -> bool:
        for i in np.flatnonzero(self.locals["dones"]):
            self.steps.setdefault(int(i), []).append(self.num_timesteps // self.training_env.num_envs)
            info = self.locals["infos"][i]
            assert info["TimeLimit.truncated"]
            self.lengths += [info["episode"]["l"]] if "episode" in info else []
        return self.stop_after is None or self.num_timesteps < self.stop_after


def agent(env: VecEnv, cls: type[Any] = PPO, **arguments: Any) -> Any:
    return cls("MlpPolicy", env, n_steps=250, batch_size=100, device="cpu", seed=0, **arguments)


@pytest.mark.parametrize(
    ("cls", "vec_env"),
    [
        (PPO, DummyVecEnv),
        (PPO, SubprocVecEnv),
        (PPO, SharedMemoryVecEnv),
        (TRPO, DummyVecEnv),
        (stable_baselines3.PPO, SubprocVecEnv),
    ],
)
def test_the_first_episodes_are_shorter_by_what_counts_as_passed(cls: type[Any], vec_env: type[Any]) -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", 4, vec_env_cls=vec_env))
    ends = Ends()
    agent(env, cls).learn(2000, callback=[StaggeredResets(), ends])
    assert ends.steps == STAGGERED
    assert sorted(ends.lengths) == [50, 100, 150] + [200] * 7
    env.close()


def test_a_training_that_goes_on_keeps_its_episodes_and_one_that_begins_anew_staggers_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = agent(make_vec_env("Pendulum-v1", 4))
    model.learn(2000, callback=StaggeredResets(verbose=1))
    assert "count as passed: 0, 50, 100, 150" in capsys.readouterr().out
    ends = Ends()
    model.learn(1000, callback=[StaggeredResets(verbose=1), ends], reset_num_timesteps=False)
    assert ends.steps == {0: [600], 1: [550, 750], 2: [700], 3: [650]}
    assert "count as passed" not in capsys.readouterr().out
    ends = Ends()
    model.learn(2000, callback=[StaggeredResets(), ends])
    assert ends.steps == STAGGERED


@pytest.mark.parametrize("resumable_first", [True, False])
def test_a_killed_training_goes_on_with_its_episodes(tmp_path: Path, resumable_first: bool) -> None:
    def trained(path: Path, *others: BaseCallback) -> Any:
        own = [ResumableCheckpointCallback(path, save_freq=1000), StaggeredResets()]
        model = agent(make_vec_env("Pendulum-v1", 4))
        return model.learn(3000, callback=[*(own if resumable_first else own[::-1]), *others])

    whole, after = Ends(), Ends()
    expected = trained(tmp_path / "whole", whole)
    trained(tmp_path / "killed", Ends(stop_after=1400))
    resumed = trained(tmp_path / "killed", after)
    assert after.steps == whole.steps  # of before the kill, too: the checkpoint keeps attributes of callbacks
    for name, parameter in expected.policy.state_dict().items():
        assert parameter.equal(resumed.policy.state_dict()[name]), name


def without_limit() -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1").unwrapped


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_environments_without_a_limit_are_left_as_they_are_with_a_warning(vec_env: type[Any]) -> None:
    env = make_vec_env(without_limit, 2, vec_env_cls=vec_env)
    with pytest.warns(UserWarning, match=r"StaggeredResets does nothing: it needs gymnasium\.wrappers\.TimeLimit"):
        agent(env).learn(500, callback=StaggeredResets())
    env.close()


def test_environments_of_envpool_are_left_as_they_are_with_a_warning() -> None:
    """They say that they have a TimeLimit, which is EnvPool's own."""
    pytest.importorskip("envpool")
    env = make_envpool("Pendulum-v1", 2, seed=0)
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [True, True]
    ends = Ends()
    with pytest.warns(UserWarning, match="StaggeredResets does nothing: it needs"):
        agent(env).learn(500, callback=[StaggeredResets(), ends])
    assert ends.steps == {0: [200], 1: [200]}
    env.close()


@pytest.mark.parametrize("normalize", [False, True])
def test_environments_of_tensors_are_staggered_too(normalize: bool) -> None:
    env: Any = TensorPendulum(4)
    ends = Ends()
    agent(TensorVecNormalize(env) if normalize else env).learn(2000, callback=[StaggeredResets(), ends])
    assert ends.steps == STAGGERED
    agent(env).learn(1000, callback=[StaggeredResets(), Ends()])  # begins with a reset
    assert env.elapsed.tolist() == [50, 100, 150, 0]


def test_limits_may_differ() -> None:
    """The environments have 100, 200 and 40 steps; none, a third and two thirds of them count as passed."""
    env = DummyVecEnv([partial(monitored, limit) for limit in (100, 200, 40)])
    ends = Ends()
    agent(env, n_epochs=1).learn(750, callback=[StaggeredResets(), ends])
    assert ends.steps == {0: [100, 200], 1: [200 - 66], 2: list(range(40 - 26, 250, 40))}


def monitored(limit: int) -> gym.Env[Any, Any]:
    return Monitor(TimeLimit(without_limit(), limit))


def test_the_limit_may_be_the_outermost_wrapper_or_a_warning_says_that_it_may_not() -> None:
    """Gymnasium 1.0 sets attributes of the wrappers within the outermost one only."""
    ends = Ends()
    model = agent(DummyVecEnv([lambda: TimeLimit(without_limit(), 100)] * 2))
    can_be_set = "force" in inspect.signature(gym.Wrapper.set_wrapper_attr).parameters  # which came with that ability
    expected = nullcontext() if can_be_set else pytest.warns(UserWarning, match="may not be the outermost wrapper")
    with expected:
        model.learn(500, callback=[StaggeredResets(), ends])
    assert ends.steps == {0: [100, 200], 1: [50, 150, 250] if can_be_set else [100, 200]}


def test_ranks_share_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three ranks with two environments each has the numbers 2 and 3 of six."""
    model, callback = agent(make_vec_env("Pendulum-v1", 2)), StaggeredResets()
    model.env.reset()
    callback.init_callback(model)
    for name, value in {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    callback.on_training_start({}, {})
    assert model.env.get_attr("_elapsed_steps") == [200 * 2 // 6, 200 * 3 // 6]


BEFORE_AND_AFTER = """
import warnings
from sb3_policyopt import PPO
from sb3_policyopt.callbacks import StaggeredResets
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

warnings.simplefilter("error", UserWarning)
before = [make_vec_env("Pendulum-v1", 2, vec_env_cls=cls) for cls in (DummyVecEnv, SubprocVecEnv)]
import rl_zoo3
after = [make_vec_env("Pendulum-v1", 2, vec_env_cls=cls) for cls in (DummyVecEnv, SubprocVecEnv)]
for env in before + after:
    model = PPO("MlpPolicy", env, n_steps=64, device="cpu").learn(128, StaggeredResets())
    print(env.get_attr("_elapsed_steps"))
    env.close()
"""


def test_environments_that_were_made_before_rl_zoo3_replaced_the_wrapper_and_after() -> None:
    """Once rl_zoo3 is imported, ``gymnasium.wrappers.TimeLimit`` is a subclass, and Gymnasium's own cannot be pickled."""
    pytest.importorskip("rl_zoo3")
    result = subprocess.run([sys.executable, "-c", BEFORE_AND_AFTER], capture_output=True, text=True, check=False)
    assert result.stdout.splitlines() == ["[64, 164]"] * 4, result.stderr


class OwnNames(gym.Wrapper[Any, Any, Any, Any]):
    """Has attributes of the same names, which mean something else, around an environment without a TimeLimit."""

    _elapsed_steps, _max_episode_steps = 0, 10


def test_other_attributes_of_the_same_names_are_not_written_to() -> None:
    env = make_vec_env(lambda: OwnNames(without_limit()), 2)
    with pytest.warns(UserWarning, match="StaggeredResets does nothing: it needs"):
        agent(env).learn(500, callback=StaggeredResets())
    assert env.get_attr("_elapsed_steps") == [0, 0]


def test_where_somebody_put_another_class_in_place_of_the_wrapper_nothing_else_is_taken_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = agent(make_vec_env(without_limit, 2))
    monkeypatch.setattr(gym.wrappers, "TimeLimit", OwnNames)
    with pytest.warns(UserWarning, match="StaggeredResets does nothing: it needs"):
        model.learn(500, callback=StaggeredResets())
