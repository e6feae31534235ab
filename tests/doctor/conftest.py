"""Real trainings with extreme settings, each a second long, trained once and only if a test requests it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

import sb3_policyopt.envs  # noqa: F401  registers MaskedRoute-v0
from sb3_policyopt import PPO, TRPO, MaskablePPO, RecurrentTRPO

UPDATES = 12


class Scaled(gym.RewardWrapper):
    """Multiplies the reward."""

    def __init__(self, env: gym.Env[Any, Any], factor: float) -> None:
        super().__init__(env)
        self.factor = factor

    def reward(self, reward: Any) -> float:
        return float(reward) * self.factor


class OneOutlier(gym.RewardWrapper):
    """Unchanged rewards, except for a single very large one."""

    def __init__(self, env: gym.Env[Any, Any], at: int) -> None:
        super().__init__(env)
        self.at, self.steps = at, 0

    def reward(self, reward: Any) -> float:
        self.steps += 1
        return 1e6 if self.steps == self.at else float(reward)


class EndsAtOnce(gym.Wrapper):
    """Ends every episode after one step, from some step on."""

    def __init__(self, env: gym.Env[Any, Any], at: int) -> None:
        super().__init__(env)
        self.at, self.steps = at, 0

    def step(self, action: Any) -> tuple[Any, ...]:
        self.steps += 1
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated or self.steps > self.at, truncated, info


class Temptation(gym.Wrapper):
    """Rewards only pushes to the left: a policy that pushes left always has more reward at once and shorter episodes."""

    def step(self, action: Any) -> tuple[Any, ...]:
        obs, _, terminated, truncated, info = self.env.step(action)
        return obs, float(action == 0), terminated, truncated, info


class Noise(gym.Env[Any, Any]):
    """Observations and rewards that no action changes, so that whatever an update gains is noise."""

    observation_space = gym.spaces.Box(-3.0, 3.0, (32,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (8,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps = 0
        return self.observation(), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        self.n_steps += 1
        return self.observation(), float(self.np_random.normal()), False, self.n_steps == 20, {}

    def observation(self) -> Any:
        return self.np_random.normal(size=32).clip(-3, 3).astype(np.float32)


def cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")


def pendulum() -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1")


def vanishing_coefficient(progress_remaining: float) -> float:
    """A wrong schedule: zero after the first third."""
    return 1e-3 if progress_remaining > 2 / 3 else 0.0


def route() -> gym.Env[Any, Any]:
    return gym.make("MaskedRoute-v0", side=4)


# name: algorithm, environment, arguments of the constructor; "policy" is the name of its policy
RUNS: dict[str, tuple[type[PPO] | type[TRPO], Callable[[], gym.Env[Any, Any]], dict[str, Any]]] = {
    "ppo healthy": (PPO, cartpole, {"n_steps": 512, "learning_rate": 1e-3, "gamma": 0.98}),
    "trpo healthy": (TRPO, cartpole, {"n_steps": 512}),
    "huge learning rate": (PPO, cartpole, {"learning_rate": 0.1}),
    "a tempting action": (PPO, lambda: Temptation(cartpole()), {"learning_rate": 0.1, "gamma": 0.0}),
    "tiny learning rate": (PPO, cartpole, {"learning_rate": 1e-9}),
    "learning rate falls to zero": (PPO, cartpole, {"learning_rate": vanishing_coefficient}),
    "clip range falls to zero": (PPO, cartpole, {"clip_range": vanishing_coefficient}),
    "rewards times 1000": (PPO, lambda: Scaled(pendulum(), 1000.0), {}),
    "rewards over a million": (PPO, lambda: Scaled(cartpole(), 1e-6), {}),
    "one enormous reward": (PPO, lambda: OneOutlier(cartpole(), 900), {}),
    "entropy bonus too large": (PPO, pendulum, {"ent_coef": 5.0, "learning_rate": 3e-2}),
    "tiny standard deviation": (PPO, pendulum, {"policy_kwargs": {"log_std_init": -8.0}}),
    "no clipping": (
        PPO,
        pendulum,
        {
            "clip_range": 10.0,
            "vf_coef": 0.0,
            "learning_rate": 1e-2,
            "batch_size": 128,
            "policy_kwargs": {"log_std_init": -3.0},
        },
    ),
    "episodes cut short": (PPO, lambda: EndsAtOnce(cartpole(), 2500), {"n_steps": 256, "learning_rate": 1e-3, "gamma": 0.98}),
    "endless episodes": (PPO, lambda: gym.make("Pendulum-v1", max_episode_steps=10**6), {}),
    "huge trust region, one try": (TRPO, cartpole, {"target_kl": 50.0, "line_search_max_iter": 1}),
    # Two samples do not determine the curvature: the full step is far too long, and its hundredth too short.
    "curvature from two samples": (TRPO, pendulum, {"sub_sampling_factor": 64, "line_search_shrinking_factor": 0.01}),
    "curvature from two samples, no line search": (TRPO, pendulum, {"sub_sampling_factor": 64, "line_search": False}),
    "masks healthy": (MaskablePPO, route, {"n_steps": 256, "learning_rate": 1e-3}),
    "memory healthy": (RecurrentTRPO, cartpole, {"policy": "MlpLstmPolicy", "policy_kwargs": {"lstm_hidden_size": 16}}),
    # Without signal, E[gᵀF⁻¹g] = p/n for p parameters and n samples: the first step promises √(p/n) times √(2 KL) where n > p.
    "noise, 10,000 parameters": (TRPO, Noise, {"gamma": 0.0}),
    "noise, 272 parameters": (TRPO, Noise, {"gamma": 0.0, "n_steps": 1024, "policy_kwargs": {"net_arch": []}}),
    "one iteration of CG": (TRPO, cartpole, {"cg_max_steps": 1, "cg_damping": 1e-6}),
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from the name of a run to its folder, with ``progress.csv`` and its arguments in ``provenance.json``."""
    done: dict[str, Path] = {}

    def train(name: str) -> Path:
        if name not in done:
            algorithm, environment, arguments = RUNS[name]
            folder = tmp_path_factory.mktemp("run")
            arguments = {"n_steps": 128, **arguments}
            policy = arguments.pop("policy", "MlpPolicy")
            # The policy has a fixed seed too, so that a run has the same findings every time.
            model = algorithm(policy, make_vec_env(environment, seed=3), seed=3, device="cpu", **arguments)
            model.set_logger(configure(str(folder), ["csv"]))
            model.learn(UPDATES * arguments["n_steps"])
            model.logger.close()
            known = {key: value for key, value in arguments.items() if isinstance(value, (int, float))}
            (folder / "provenance.json").write_text(json.dumps({"n_envs": 1, "hyperparameters": known}))
            done[name] = folder
        return done[name]

    return train
