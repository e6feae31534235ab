"""Real runs, as small as they can be: trained once for all tests of this folder."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor

from sb3_policyopt import PPO, TRPO


def train(folder: Path, algorithm: type[Any], env_id: str, seed: int, steps: int, **kwargs: Any) -> Path:
    """Train, with Monitor files, csv log and evaluations in ``folder``."""
    folder.mkdir(parents=True)
    env = make_vec_env(env_id, n_envs=2, seed=seed, monitor_dir=str(folder))
    model = algorithm("MlpPolicy", env, seed=seed, device="cpu", **kwargs)
    model.set_logger(configure(str(folder), ["csv"]))
    evaluation = EvalCallback(
        Monitor(gym.make(env_id)), eval_freq=steps // 4, log_path=str(folder), n_eval_episodes=2, verbose=0
    )
    model.learn(steps, callback=evaluation)
    model.logger.close()
    return folder


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``logs/{algo}/{env}_{n}``: two seeds of PPO, two of TRPO, one TRPO run with continuous actions."""
    root = tmp_path_factory.mktemp("logs")
    for seed in (1, 2):
        train(root / "ppo" / f"CartPole-v1_{seed}", PPO, "CartPole-v1", seed, 1024, n_steps=128, n_epochs=2)
        train(root / "trpo" / f"CartPole-v1_{seed}", TRPO, "CartPole-v1", seed, 1024, n_steps=128)
    train(root / "trpo" / "Pendulum-v1_1", TRPO, "Pendulum-v1", 1, 1024, n_steps=128)
    return root
