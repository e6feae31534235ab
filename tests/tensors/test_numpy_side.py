"""The NumPy side of a tensor environment: what ``DummyVecEnv`` returns, and what SB3 does with it."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from comparison import assert_same_course
from fake_simulator import ACTIONS, OBSERVATIONS, FakeTensorEnv, reference
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize, VecVideoRecorder

from sb3_policyopt.envs.tensors import TensorCartPole, TensorPendulum, TensorStep, TensorVecEnv, is_tensor_env
from sb3_policyopt.envs.tensors.vec_env import take_seed

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("dicts", [False, True])
def test_equals_dummy_vec_env(dicts: bool) -> None:
    cut_off = assert_same_course(FakeTensorEnv(7, dicts), reference(7, dicts), 60)
    assert cut_off > 10


@pytest.mark.parametrize("bootstrap", ["previous", "none"])
def test_without_last_observations_infos_have_none(bootstrap: str) -> None:
    env = FakeTensorEnv(7, bootstrap=bootstrap, gives_final=False)
    assert_same_course(env, reference(7), 30, terminal_observations=False)


def test_a_missing_last_observation_is_an_error_where_an_episode_is_cut_off() -> None:
    """Environment 1 ends after 2 + 3 = 5 steps, at the limit: no value is needed. Environment 2 is cut off there."""
    env = FakeTensorEnv(2, gives_final=False)
    env.reset()
    for _ in range(5):
        env.step(np.zeros((2, 2), np.float32))
    env = FakeTensorEnv(3, gives_final=False)
    env.reset()
    with pytest.raises(ValueError, match="final_obs"):
        for _ in range(5):
            env.step(np.zeros((3, 2), np.float32))


def test_actions_are_copied_and_have_the_types_of_their_space() -> None:
    seen: list[th.Tensor] = []

    class Recorder(FakeTensorEnv):
        def step_tensors(self, actions: th.Tensor) -> TensorStep:
            seen.append(actions)
            return super().step_tensors(th.zeros(self.num_envs, 2))

    for space, given, dtype in (
        (gym.spaces.Discrete(3), np.array([0, 2]), th.int64),
        (gym.spaces.MultiDiscrete([3, 2]), np.array([[0, 1], [2, 0]], np.int32), th.int64),
        (gym.spaces.MultiBinary(2), np.array([[0, 1], [1, 0]], np.float32), th.int8),
        (ACTIONS, np.zeros((2, 2)), th.float32),
    ):
        env = Recorder(2)
        env.action_space = space
        env.reset()
        env.step_async(given)
        expected = given.copy()
        given[:] = 1
        env.step_wait()
        assert seen[-1].dtype == dtype
        np.testing.assert_array_equal(seen[-1].numpy(), expected)
    with pytest.raises(ValueError, match="actions"):
        env.step(np.zeros(2))


def test_observations_get_the_type_of_their_space() -> None:
    class Half(FakeTensorEnv):
        def form(self, clock: th.Tensor) -> th.Tensor:
            return clock.bfloat16()

    observations = Half(2).reset()
    assert isinstance(observations, np.ndarray) and observations.dtype == np.float32
    np.testing.assert_array_equal(observations[:, 0], [0, 1])


def test_a_seed_counts_at_the_next_reset_once() -> None:
    env = FakeTensorEnv(2)
    assert env.seed(7) == [7, 8]
    env.reset()
    env.reset()
    assert env.simulator.seeds == [7, None]
    env.seed(9)
    wrapped = VecMonitor(env)
    assert take_seed(wrapped) == 9 and take_seed(wrapped) is None


def test_attributes_are_those_of_the_whole_simulator() -> None:
    env = FakeTensorEnv(3)
    assert env.get_attr("dicts") == [False] * 3 and env.get_attr("dicts", [0, 2]) == [False] * 2
    env.set_attr("dicts", True)
    assert env.get_attr("dicts", 1) == [True]
    assert env.has_attr("simulator") and not env.has_attr("action_masks")
    assert env.env_method("form", th.zeros(1, 4))[2]["step"].dtype == th.uint8
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
    for change in (lambda: env.set_attr("dicts", False, [1]), lambda: env.env_method("close", indices=0)):
        with pytest.raises(ValueError, match="indices"):
            change()
    env.set_options({})
    env.set_options([{}, {}, {}])
    for options in ({"low": 1}, [{"low": 1}]):
        with pytest.raises(ValueError, match="options"):
            env.set_options(options)  # type: ignore[arg-type]
    VecMonitor(env).close()
    assert env.closed


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="num_envs"):
        FakeTensorEnv(0)
    with pytest.raises(ValueError, match="bootstrap"):
        FakeTensorEnv(1, bootstrap="next")


def test_the_class_decides_what_a_tensor_environment_is() -> None:
    class HasAnAttribute(VecMonitor):
        step_tensors = None

    env = FakeTensorEnv(2)
    assert is_tensor_env(env) and isinstance(env, TensorVecEnv)
    assert not is_tensor_env(reference(2))
    for wrapped in (VecMonitor(env), VecNormalize(env), HasAnAttribute(env)):
        assert hasattr(wrapped, "simulator"), "wrappers forward attributes"
        assert not is_tensor_env(wrapped)


def test_sb3s_wrappers_give_what_they_give_around_dummy_vec_env(tmp_path: Path) -> None:
    def wrapped(env: Any, name: str) -> VecNormalize:
        (tmp_path / name).mkdir()
        return VecNormalize(VecFrameStack(VecMonitor(env, str(tmp_path / name / "log")), 2))

    ours, theirs = wrapped(FakeTensorEnv(5), "ours"), wrapped(reference(5), "theirs")
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    for _ in range(40):
        actions = np.full((5, 2), 0.5, np.float32)
        one, other = ours.step(actions), theirs.step(actions)
        for a, b in zip(one[:3], other[:3], strict=True):
            np.testing.assert_array_equal(a, b)
        for info, wanted in zip(one[3], other[3], strict=True):
            assert info.keys() == wanted.keys()
            if "terminal_observation" in wanted:
                np.testing.assert_array_equal(info["terminal_observation"], wanted["terminal_observation"])
                assert (info["episode"]["r"], info["episode"]["l"]) == (wanted["episode"]["r"], wanted["episode"]["l"])
    ours.close()
    theirs.close()
    logs = [load_results(str(tmp_path / name))[["r", "l"]].to_numpy() for name in ("ours", "theirs")]
    assert len(logs[0]) > 40
    np.testing.assert_array_equal(*logs)


def test_sb3_trains_and_evaluates(tmp_path: Path) -> None:
    env, other = TensorCartPole(8, "cpu", seed=0), TensorCartPole(4, "cpu", seed=1)
    callback = EvalCallback(VecMonitor(other), n_eval_episodes=8, eval_freq=32, log_path=str(tmp_path), verbose=0)
    model = StockPPO("MlpPolicy", VecMonitor(env), n_steps=64, batch_size=128, seed=0, device="cpu").learn(
        1024, callback=callback
    )
    assert len(np.load(tmp_path / "evaluations.npz")["results"]) == 4
    mean, _ = evaluate_policy(model, VecMonitor(TensorCartPole(4, "cpu", seed=2)), n_eval_episodes=8)
    assert np.mean(mean) > 5
    actions, _ = model.predict(other.reset(), deterministic=True)
    assert actions.shape == (4,)


def test_a_policy_gets_the_same_returns_as_in_gymnasiums_environment() -> None:
    """A rule that balances the pole for 500 steps, and one that lets it fall after 8 to 11: the range of 20,000 episodes."""

    class Rule:
        def __init__(self, falls: bool) -> None:
            self.falls = falls

        def predict(self, observation: np.ndarray[Any, Any], **_: Any) -> tuple[np.ndarray[Any, Any], None]:
            right = observation @ np.array([0.1, 0.3, 3.0, 1.0]) > 0
            return np.zeros(len(right), int) if self.falls else right.astype(int), None

    gymnasiums = DummyVecEnv([lambda: gym.make("CartPole-v1")])
    gymnasiums.seed(0)
    for falls in (False, True):
        for env in (TensorCartPole(3, "cpu", seed=0), gymnasiums):
            returns, lengths = evaluate_policy(Rule(falls), env, 9, return_episode_rewards=True, warn=False)  # type: ignore[arg-type]
            assert returns == lengths
            assert (np.min(returns) >= 8 and np.max(returns) <= 11) if falls else np.min(returns) == 500


def test_videos_are_recorded(tmp_path: Path) -> None:
    pytest.importorskip("pygame"), pytest.importorskip("moviepy")
    env = VecVideoRecorder(
        TensorPendulum(2, "cpu", seed=0, render_mode="rgb_array"), str(tmp_path), lambda step: step == 0, video_length=3
    )
    assert env.frames_per_sec == 30
    env.reset()
    for _ in range(5):
        env.step(np.zeros((2, 1), np.float32))
    env.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_without_a_render_mode_there_is_no_picture() -> None:
    assert TensorCartPole(2, "cpu").get_images() == [None, None]
    assert FakeTensorEnv(2).get_images() == [None, None]
    assert FakeTensorEnv(2).observation_space == OBSERVATIONS
