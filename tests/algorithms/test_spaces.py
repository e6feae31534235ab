"""Every observation space, action space and policy of SB3 trains, predicts, saves and loads."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, parameter_vector, toy

from benchmarks.environments import ToyEnv
from sb3_policyopt import PPO, TRPO

SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 16, "seed": 0, "device": "cpu"}
LIGHT: dict[type[Any], dict[str, Any]] = {PPO: {"n_epochs": 1}, TRPO: {"cg_max_steps": 2, "n_critic_updates": 1}}


def policy_for(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if space.shape == (36, 36, 1) else "MlpPolicy"


def trains(cls: type[Any], observation: spaces.Space[Any], action: spaces.Space[Any], tmp_path: Path, **options: Any) -> None:
    env = toy(observation, action, n_envs=2)
    model = cls(policy_for(observation), env, **{**SMALL, **LIGHT[cls], **options})
    before = parameter_vector(model.policy)
    model.learn(32)
    after = parameter_vector(model.policy)
    assert after.isfinite().all() and not th.equal(before, after)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=env, device="cpu")
    observations = env.reset()
    actions, _ = model.predict(observations, deterministic=True)
    # Not to the last bit: torch chooses its kernels by where in memory the weights lie.
    np.testing.assert_allclose(loaded.predict(observations, deterministic=True)[0], actions, rtol=1e-4, atol=1e-6)
    assert all(action.contains(one) for one in np.asarray(actions, dtype=action.dtype))


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_observation_spaces(cls: type[Any], observation: str, tmp_path: Path) -> None:
    trains(cls, OBSERVATION_SPACES[observation], ACTION_SPACES["discrete"], tmp_path)


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize("action", ACTION_SPACES)
def test_action_spaces(cls: type[Any], action: str, engine: str, tmp_path: Path) -> None:
    trains(cls, OBSERVATION_SPACES["box"], ACTION_SPACES[action], tmp_path, engine=engine)


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize("observation", ["box", "discrete", "dict"])
@pytest.mark.parametrize("squash_output", [False, True])
def test_gsde(cls: type[Any], observation: str, squash_output: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"use_sde": True, "sde_sample_freq": 3, "policy_kwargs": {"squash_output": squash_output}}
    trains(cls, OBSERVATION_SPACES[observation], ACTION_SPACES["box_6"], tmp_path, **options)


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_asymmetric_bounds_and_matrix_actions(cls: type[Any], engine: str, tmp_path: Path) -> None:
    trains(cls, OBSERVATION_SPACES["box"], spaces.Box(np.array([-2, 0], np.float32), np.array([0.5, 3], np.float32)), tmp_path)
    trains(cls, OBSERVATION_SPACES["box"], spaces.Box(-1, 1, (2, 3), np.float32), tmp_path, engine=engine)


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_unsupported_spaces_are_refused(cls: type[Any]) -> None:
    env = make_vec_env(lambda: ToyEnv(action_space=spaces.Dict({"a": spaces.Discrete(2)})), 1)
    with pytest.raises(AssertionError, match="Dict"):
        cls("MlpPolicy", env, device="cpu")


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_an_environment_by_its_name(cls: type[Any]) -> None:
    model = cls("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, device="cpu").learn(64)
    assert isinstance(model.action_space, spaces.Discrete)
    assert isinstance(gym.make("CartPole-v1").observation_space, spaces.Box)
