"""
Learning, in environments that each isolate one thing that has to work (after the probe environments of rejax), and two
runs from one seed that are the same, bit for bit.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.evaluation import evaluate_policy
from toy_environments import ACTION_SPACES, parameter_vector, toy

from sb3_policyopt import PPO, TRPO

ALGORITHMS: dict[type[Any], dict[str, Any]] = {
    PPO: {"n_steps": 32, "batch_size": 64, "n_epochs": 4, "learning_rate": 1e-2},
    TRPO: {"n_steps": 32, "batch_size": 64, "n_critic_updates": 4, "learning_rate": 1e-2, "target_kl": 0.05},
}
both = pytest.mark.parametrize("cls", ALGORITHMS)


class Probe(gym.Env):
    """
    Episodes of one or two steps whose observations are −1 or 1 and whose actions are 0 or 1.

    :param kind: "constant": reward 1, nothing else; "observation": the reward is the observation; "delayed": two steps, the
        reward 1 comes with the second; "action": reward 1 for action 1; "both": reward 1 where the action is that of the
        observation (1 for 1, 0 for −1)
    """

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def observe(self) -> np.ndarray:
        random = self.kind in ("observation", "both")
        self.sign = float(self.np_random.choice([-1, 1])) if random else (-1.0 if self.steps == 0 else 1.0)
        return np.array([self.sign], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = {
            "constant": 1.0,
            "observation": self.sign,
            "delayed": float(self.steps == 1),
            "action": float(action == 1),
            "both": float((action == 1) == (self.sign > 0)),
        }[self.kind]
        self.steps += 1
        over = self.steps == (2 if self.kind == "delayed" else 1)
        return self.observe(), reward, over, False, {}


def trained(cls: type[Any], kind: str, engine: str, timesteps: int) -> tuple[list[float], list[float]]:
    env = make_vec_env(lambda: Probe(kind), 8, seed=0)
    model = cls("MlpPolicy", env, engine=engine, gamma=0.5, seed=0, device="cpu", **ALGORITHMS[cls]).learn(timesteps)
    observations = th.tensor([[-1.0], [1.0]])
    with th.no_grad():
        values = model.policy.predict_values(observations).flatten().tolist()
        p_one = model.policy.get_distribution(observations).distribution.probs[:, 1].tolist()
    return values, p_one


@both
def test_the_critic_learns_a_constant(cls: type[Any], engine: str) -> None:
    values, _ = trained(cls, "constant", engine, 3_000)
    assert values[0] == pytest.approx(1, abs=0.1)


@both
def test_the_critic_tells_observations_apart(cls: type[Any], engine: str) -> None:
    values, _ = trained(cls, "observation", engine, 3_000)
    assert values == pytest.approx([-1, 1], abs=0.15)


@both
def test_the_critic_discounts(cls: type[Any], engine: str) -> None:
    """V of the last step is 1, and V of the one before γ·1 = 0.5."""
    values, _ = trained(cls, "delayed", engine, 4_000)
    assert values == pytest.approx([0.5, 1], abs=0.1)


@both
def test_the_actor_learns_the_better_action(cls: type[Any], engine: str) -> None:
    _, p_one = trained(cls, "action", engine, 3_000)
    assert p_one[0] > 0.9


@both
def test_the_actor_learns_the_better_action_of_each_observation(cls: type[Any], engine: str) -> None:
    values, p_one = trained(cls, "both", engine, 4_000)
    assert p_one[0] < 0.1 and p_one[1] > 0.9
    assert values == pytest.approx([1, 1], abs=0.2)


@pytest.mark.slow
@both
@pytest.mark.parametrize(
    "env", [IdentityEnv(2), IdentityEnvMultiDiscrete(2), IdentityEnvMultiBinary(2)], ids=lambda env: type(env).__name__
)
def test_sb3s_identity_environments(cls: type[Any], env: Any, engine: str) -> None:
    """SB3's own learning test, with its discount, seed and threshold: at least 90 of 100 rewards."""
    options: dict[str, Any] = {
        "n_steps": 256,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "gamma": 0.4,
        "seed": 1,
        "device": "cpu",
    }
    if cls is TRPO:
        options["target_kl"] = 0.05
    model = cls("MlpPolicy", env, engine=engine, **options).learn(6_000)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=20, warn=False)
    assert isinstance(mean, float) and mean > 90


@both
@pytest.mark.parametrize("action", ["box_6", "discrete"])
def test_two_seeded_runs_are_equal_bit_for_bit(cls: type[Any], action: str, engine: str) -> None:
    vectors = []
    for seed in (3, 3, 4):
        model = cls(
            "MlpPolicy", toy(action=ACTION_SPACES[action], seed=seed), engine=engine, n_steps=32, batch_size=32, seed=seed
        )
        vectors.append(parameter_vector(model.learn(256).policy))
    assert th.equal(vectors[0], vectors[1])
    assert not th.equal(vectors[0], vectors[2])
