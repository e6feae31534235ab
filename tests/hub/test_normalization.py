"""Normalisation statistics are written as plain arrays, and read back unchanged."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_policyopt import PPO
from sb3_policyopt.hub import push_to_hub
from sb3_policyopt.hub.normalization import load_statistics, save_statistics, statistics_to_pickle
from sb3_policyopt.hub.wrappers import normalization_of, replaced_gamma

pytestmark = pytest.mark.fast


class DictEnv(gym.Env):
    observation_space = spaces.Dict({"position": spaces.Box(-9, 9, (2,)), "other": spaces.Box(-1, 1, (1,))})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 1.5, bool(self.np_random.random() < 0.2), False, {}


CASES: dict[str, tuple[Callable[[], VecEnv], dict[str, Any]]] = {
    "box": (lambda: make_vec_env("Pendulum-v1", 2, seed=1), {}),
    "rewards only": (lambda: make_vec_env("CartPole-v1", 2, seed=1), {"norm_obs": False, "gamma": 0.9}),
    "dict": (lambda: DummyVecEnv([DictEnv]), {"norm_obs_keys": ["position"], "clip_obs": 3.0, "clip_reward": 4.0}),
}


def trained(case: Any) -> Any:
    make, arguments = CASES[case]
    env = VecNormalize(make(), **arguments)
    env.reset()
    for _ in range(30):
        env.step(np.stack([env.action_space.sample() for _ in range(env.num_envs)]))
    return env, make


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env, make = trained(case)
    save_statistics(env, tmp_path / "statistics.npz")
    with monkeypatch.context() as patch:
        patch.setattr(pickle, "load", None)
        patch.setattr(pickle, "loads", None)
        loaded = load_statistics(tmp_path / "statistics.npz")

    raw = env.get_original_obs()
    before, after = env.normalize_obs(raw), loaded.normalize_obs(raw)
    np.testing.assert_equal(after, before)
    rewards = np.array([0.3, -20.0])
    np.testing.assert_array_equal(loaded.normalize_reward(rewards), env.normalize_reward(rewards))
    for name in ("norm_obs", "norm_reward", "norm_obs_keys", "clip_obs", "clip_reward", "gamma", "epsilon", "training"):
        assert getattr(loaded, name) == getattr(env, name)

    # Attached to an environment, it continues with the statistics of the other one.
    loaded.set_venv(make())
    loaded.reset()
    assert loaded.ret_rms.count == env.ret_rms.count
    loaded.step(np.stack([loaded.action_space.sample() for _ in range(loaded.num_envs)]))
    assert loaded.ret_rms.count == env.ret_rms.count + loaded.num_envs


@pytest.mark.parametrize("case", CASES)
def test_pickle_for_the_zoo_is_what_the_zoo_reads(case: Any, tmp_path: Path) -> None:
    env, make = trained(case)
    save_statistics(env, tmp_path / "statistics.npz")
    statistics_to_pickle(tmp_path / "statistics.npz", tmp_path / "vecnormalize.pkl")
    loaded = VecNormalize.load(str(tmp_path / "vecnormalize.pkl"), make())
    raw = env.get_original_obs()
    np.testing.assert_equal(loaded.normalize_obs(raw), env.normalize_obs(raw))


def test_statistics_attached_to_nothing_can_be_saved(tmp_path: Path) -> None:
    """As in a loaded pickle, to which no environment is attached yet."""
    env, _ = trained("box")
    save_statistics(pickle.loads(pickle.dumps(env)), tmp_path / "statistics.npz")
    raw = env.get_original_obs()
    np.testing.assert_array_equal(load_statistics(tmp_path / "statistics.npz").normalize_obs(raw), env.normalize_obs(raw))


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    env, _ = trained("box")
    path = tmp_path / "statistics.npz"
    save_statistics(env, path)
    arrays: dict[str, Any] = dict(np.load(path))
    np.savez(path, **(arrays | {"observations/mean": np.zeros(7)}))
    with pytest.raises(ValueError, match="shape"):
        load_statistics(path)
    del arrays["observations/var"]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="observations/var"):
        load_statistics(path)
    path.write_text("no zip")
    with pytest.raises(ValueError):
        load_statistics(path)
    with pytest.raises(FileNotFoundError):
        load_statistics(tmp_path / "missing.npz")


@pytest.mark.parametrize("of_agent", [None, 0.9, 0.99])
@pytest.mark.parametrize(
    ("make", "arguments", "rarer"),
    [
        (lambda: make_vec_env("Pendulum-v1", 1), {}, {}),
        (lambda: make_vec_env("Pendulum-v1", 1), {"gamma": 0.5}, {"gamma": 0.5}),
        (lambda: DummyVecEnv([DictEnv]), {"norm_obs_keys": ["position"]}, {"norm_obs_keys": ["position"]}),
        (lambda: DummyVecEnv([DictEnv]), {"norm_obs_keys": ["position"], "norm_obs": False, "norm_reward": False}, {}),
    ],
    ids=["default", "gamma", "keys", "keys that mean nothing"],
)
def test_arguments_of_a_normalisation_that_differ_from_those_of_the_zoo(
    make: Callable[[], VecEnv], arguments: dict[str, Any], rarer: dict[str, Any], of_agent: float | None
) -> None:
    env = VecNormalize(make(), **arguments)
    config: dict[str, object] = {} if of_agent is None else {"gamma": of_agent}
    if of_agent == 0.9 and env.norm_reward:  # which the zoo would insert
        rarer = {"gamma": env.gamma, **rarer}
    config["normalize"] = entry = normalization_of(env, config)
    assert entry == {"norm_obs": env.norm_obs, "norm_reward": env.norm_reward, **rarer}
    assert replaced_gamma(config) == (
        env.gamma if of_agent is not None and env.gamma != of_agent and "gamma" in entry else None
    )
    again = VecNormalize(make(), **entry)  # type: ignore[arg-type]  # of the YAML
    assert not again.norm_obs or again.norm_obs_keys == env.norm_obs_keys
    assert not again.norm_reward or again.gamma == env.gamma


def test_the_card_says_whose_gamma_a_training_takes(tmp_path: Path) -> None:
    for gamma, remark in ((0.99, False), (0.9, True)):
        env = VecNormalize(make_vec_env("Pendulum-v1", 1), gamma=0.5)
        model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, gamma=gamma, device="cpu")
        folder = push_to_hub(model, "me/x", n_eval_episodes=1, video_length=0, dry_run=tmp_path / str(gamma))
        card = (Path(folder) / "README.md").read_text()
        assert "    gamma: 0.5\n" in card and ("has the `gamma` of the algorithm, and not 0.5" in card) == remark
