"""``TensorVecNormalize`` against SB3's ``VecNormalize``."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from fake_simulator import ACTIONS, FakeTensorEnv, reference
from gymnasium import spaces
from no_sync import NoSync
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize, sync_envs_normalization, unwrap_vec_normalize

from sb3_policyopt.envs.tensors import TensorPendulum, TensorStep, TensorVecEnv, TensorVecNormalize, is_tensor_env
from sb3_policyopt.rollout.batch import Observations

pytestmark = pytest.mark.fast

NAMES = {
    "as it is": {},
    "settings": {"clip_obs": 1.5, "clip_reward": 0.7, "gamma": 0.9, "epsilon": 1e-3},
    "no observations": {"norm_obs": False},
    "no rewards": {"norm_reward": False},
    "not training": {"training": False},
}


def close(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            close(one[key], other[key])
        return
    assert one.dtype == other.dtype
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def moments_of(env: VecNormalize) -> list[RunningMeanStd]:
    found: Any = env.obs_rms if hasattr(env, "obs_rms") else {}
    return [*(found.values() if isinstance(found, dict) else [found]), env.ret_rms]


def assert_same_moments(one: VecNormalize, other: VecNormalize) -> None:
    for ours, theirs in zip(moments_of(one), moments_of(other), strict=True):
        assert isinstance(ours, RunningMeanStd)
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours.var, theirs.var, rtol=1e-6, atol=1e-6)
        assert ours.count == pytest.approx(theirs.count, rel=1e-12)


def assert_same_course(one: VecNormalize, other: VecNormalize, n_steps: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    close(one.reset(), other.reset())
    for _ in range(n_steps):
        actions = random.uniform(-1, 1, (one.num_envs, *one.action_space.shape)).astype(np.float32)  # type: ignore[misc]
        ours, theirs = one.step(actions), other.step(actions)
        close(ours[0], theirs[0])
        close(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[2], theirs[2])
        for info, wanted in zip(ours[3], theirs[3], strict=True):
            assert info.keys() == wanted.keys()
            if "terminal_observation" in wanted:
                close(info["terminal_observation"], wanted["terminal_observation"])
        close(one.get_original_obs(), other.get_original_obs())
        close(one.get_original_reward(), other.get_original_reward())
    assert_same_moments(one, other)


@pytest.mark.parametrize("settings", NAMES.values(), ids=NAMES)
def test_equals_sb3s_for_hundreds_of_steps(settings: dict[str, Any]) -> None:
    assert_same_course(TensorVecNormalize(FakeTensorEnv(6), **settings), VecNormalize(reference(6), **settings), 300)


@pytest.mark.parametrize("keys", [None, ["clock"]])
def test_equals_sb3s_with_dicts(keys: list[str] | None) -> None:
    """One of the keys is uint8: normalised, it is float32; else it stays what it is."""
    ours = TensorVecNormalize(FakeTensorEnv(5, dicts=True), norm_obs_keys=keys)
    theirs = VecNormalize(reference(5, as_dict=True), norm_obs_keys=keys)
    assert_same_course(ours, theirs, 300)


def test_equals_sb3s_around_pendulum() -> None:
    ours, inner = TensorVecNormalize(TensorPendulum(16, "cpu", seed=3)), TensorPendulum(16, "cpu", seed=3)
    assert_same_course(ours, VecNormalize(inner), 500)


def test_large_means_keep_their_variance() -> None:
    """A mean of 1,000 with a deviation of 1: near its square, numbers of float32 are 0.06 apart."""
    random = th.Generator().manual_seed(0)

    class Offset(TensorVecEnv):
        def __init__(self) -> None:
            super().__init__(64, spaces.Box(-np.inf, np.inf, (2,), np.float32), ACTIONS)

        def reset_tensors(self, seed: int | None = None) -> Observations[th.Tensor]:
            return 1e3 + th.randn(64, 2, generator=random)

        def step_tensors(self, actions: th.Tensor) -> TensorStep:
            no = th.zeros(64, dtype=th.bool)
            return TensorStep(1e3 + th.randn(64, 2, generator=random), th.ones(64), no, no, {})

    env = TensorVecNormalize(Offset())
    env.reset_tensors()
    for _ in range(300):
        observations = env.step_tensors(th.zeros(64, 2)).observations
    np.testing.assert_allclose(np.asarray(env.obs_rms.var), 1.0, atol=0.05)
    assert isinstance(observations, th.Tensor) and observations.std() == pytest.approx(1.0, abs=0.2)


def test_no_step_waits_for_the_device() -> None:
    for dicts in (False, True):
        env = TensorVecNormalize(FakeTensorEnv(6, dicts))
        env.reset_tensors()
        with NoSync():
            for _ in range(12):
                env.step_tensors(th.zeros(6, 2))


def test_tensors_that_were_returned_are_not_the_buffers_of_the_simulator() -> None:
    """What was returned in a step is normalised anew in the next; the originals stay those of their own step."""
    env = TensorVecNormalize(FakeTensorEnv(4))
    env.reset_tensors()
    first = env.step_tensors(th.zeros(4, 2))
    original, kept = env.get_original_obs(), env.old_obs
    numbers = first.observations.clone()  # type: ignore[union-attr]
    env.step_tensors(th.ones(4, 2))
    np.testing.assert_array_equal(kept, original)
    assert th.equal(first.observations, numbers)  # type: ignore[arg-type]


def test_it_is_a_tensor_environment_and_a_vec_normalize() -> None:
    env = TensorVecNormalize(FakeTensorEnv(3, bootstrap="previous"))
    assert is_tensor_env(env) and isinstance(env, VecNormalize) and isinstance(env, TensorVecEnv)
    assert unwrap_vec_normalize(VecMonitor(env)) is env
    assert (env.device, env.bootstrap) == (th.device("cpu"), "previous")
    assert env.get_attr("dicts") == [False] * 3 and env.env_method("form", th.zeros(1, 4))[0].shape == (1, 4)
    env.set_attr("gives_final", False)
    assert env.get_attr("gives_final", 0) == [False]
    assert env.unwrapped is env.venv and env.get_images() == [None] * 3 and env.env_is_wrapped(Any) == [False] * 3  # type: ignore[arg-type]
    assert env.seed(5) == [5, 6, 7]
    env.set_options({})
    env.reset()
    assert env.get_attr("simulator")[0].seeds == [5]
    env.close()
    assert env.get_attr("closed") == [True] * 3


def test_the_numpy_methods_use_the_statistics() -> None:
    ours, theirs = TensorVecNormalize(FakeTensorEnv(4)), VecNormalize(reference(4))
    assert_same_course(ours, theirs, 20)
    observations = np.arange(8.0).reshape(2, 4)
    close(ours.normalize_obs(observations), theirs.normalize_obs(observations))
    close(ours.unnormalize_obs(observations), theirs.unnormalize_obs(observations))
    close(ours.normalize_reward(observations[0]), theirs.normalize_reward(observations[0]))
    close(ours.unnormalize_reward(observations[0]), theirs.unnormalize_reward(observations[0]))


@pytest.mark.parametrize("dicts", [False, True])
def test_statistics_are_synchronised_in_both_directions(dicts: bool) -> None:
    ours, theirs = TensorVecNormalize(FakeTensorEnv(4, dicts)), VecNormalize(reference(4, dicts))
    evaluation: VecNormalize
    assert_same_course(ours, theirs, 20)
    for evaluation in (VecNormalize(reference(2, dicts), training=False), TensorVecNormalize(FakeTensorEnv(2, dicts), False)):
        sync_envs_normalization(ours, evaluation)
        assert_same_moments(evaluation, ours)
        expected = VecNormalize(reference(2, dicts), training=False)
        sync_envs_normalization(theirs, expected)
        assert_same_course(evaluation, expected, 20)
    assert b"sb3_policyopt" not in pickle.dumps(moments_of(evaluation)[0])
    before = moments_of(ours)[0].mean.copy()
    evaluation.training = True
    evaluation.reset()
    np.testing.assert_array_equal(moments_of(ours)[0].mean, before)


def test_statistics_can_be_assigned_and_combined() -> None:
    env = TensorVecNormalize(FakeTensorEnv(2))
    env.obs_rms.mean, env.obs_rms.count = np.array([1.0, 2.0, 3.0, 4.0]), 10.0
    np.testing.assert_array_equal(env.obs_rms.mean, [1, 2, 3, 4])
    with pytest.raises(ValueError, match="read-only"):
        env.obs_rms.mean[0] = 5.0
    stock = RunningMeanStd(shape=(4,))
    stock.update(np.random.default_rng(0).normal(size=(50, 4)))
    expected = env.obs_rms.copy()
    assert type(expected) is RunningMeanStd
    env.obs_rms.combine(stock)
    expected.combine(stock)
    np.testing.assert_allclose(env.obs_rms.var, expected.var, rtol=1e-12)
    env.obs_rms.var = expected.var
    env.obs_rms = stock
    env.reset()
    assert env.obs_rms is not stock and env.obs_rms.count == stock.count + 2


@pytest.mark.parametrize("settings", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("dicts", [False, True])
def test_files_are_sb3s(settings: dict[str, Any], dicts: bool, tmp_path: Path) -> None:
    ours, theirs = TensorVecNormalize(FakeTensorEnv(4, dicts), **settings), VecNormalize(reference(4, dicts), **settings)
    assert_same_course(ours, theirs, 30)
    ours.save(str(tmp_path / "ours.pkl"))
    theirs.save(str(tmp_path / "theirs.pkl"))
    assert b"sb3_policyopt" not in (tmp_path / "ours.pkl").read_bytes()
    fresh = [
        VecNormalize.load(str(tmp_path / "ours.pkl"), reference(2, dicts)),
        TensorVecNormalize.load(str(tmp_path / "ours.pkl"), FakeTensorEnv(2, dicts)),
        TensorVecNormalize.load(str(tmp_path / "theirs.pkl"), FakeTensorEnv(2, dicts)),
    ]
    for loaded in fresh:
        assert_same_moments(loaded, theirs)
        assert_same_course(loaded, VecNormalize.load(str(tmp_path / "theirs.pkl"), reference(2, dicts)), 30)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is VecNormalize
        close(copied.get_original_reward(), theirs.get_original_reward())
        close(copied.get_original_obs(), theirs.get_original_obs())


def test_a_file_opens_where_this_package_is_not_installed(tmp_path: Path) -> None:
    env = TensorVecNormalize(FakeTensorEnv(2))
    env.reset()
    env.step(np.zeros((2, 2), np.float32))
    env.save(str(tmp_path / "file.pkl"))
    script = (
        "import sys; sys.modules['sb3_policyopt'] = None\n"
        "import pickle; saved = pickle.load(open('file.pkl', 'rb')); print(type(saved).__name__, saved.obs_rms.count)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["VecNormalize", "4.0001"]


def test_sb3_trains_with_it_and_saves_it(tmp_path: Path) -> None:
    env = TensorVecNormalize(TensorPendulum(8, "cpu", seed=0))
    model = StockPPO("MlpPolicy", env, n_steps=32, batch_size=64, seed=0, device="cpu").learn(512)
    assert model.get_vec_normalize_env() is env
    assert env.obs_rms.count == pytest.approx(512 + 8, abs=1e-3)
    env.save(str(tmp_path / "file.pkl"))
    assert moments_of(VecNormalize.load(str(tmp_path / "file.pkl"), TensorPendulum(2, "cpu")))[0].count == env.obs_rms.count


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="venv"):
        TensorVecNormalize(reference(2))
    with pytest.raises(ValueError, match="norm_obs_keys"):
        TensorVecNormalize(FakeTensorEnv(2), norm_obs_keys=["clock"])
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="load_path"):
        TensorVecNormalize.load(str(tmp_path / "other.pkl"), FakeTensorEnv(2))
