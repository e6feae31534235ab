"""Nothing non-finite gets in on a GPU either, and nobody has to wait for it to be noticed elsewhere."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from toy_environments import collect, parameter_vector, start, toy

from sb3_policyopt import PPO, TRPO, NonFiniteError

SMALL = {"n_steps": 16, "batch_size": 16, "seed": 0}
BOTH = pytest.mark.parametrize("cls", [PPO, TRPO])


class Faulty(gym.Env):
    """Random numbers; a reward, or a number of an observation, is NaN at a step."""

    observation_space = spaces.Box(-9, 9, (3,), np.float32)

    def __init__(self, action_space, quantity, at):
        self.action_space, self.quantity, self.at, self.steps = action_space, quantity, at, 0

    def _observe(self):
        observation = self.np_random.normal(size=3).astype(np.float32)
        if self.quantity == "observation" and self.steps == self.at:
            observation[1] = np.nan
        return observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        reward = np.nan if self.quantity == "reward" and self.steps == self.at else 1.0
        return self._observe(), reward, False, False, {}


@BOTH
@pytest.mark.parametrize("quantity", ["observation", "reward"])
@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)], ids=["discrete", "box"])
def test_what_an_environment_returns_is_named(cls, quantity, actions, device):
    env = make_vec_env(lambda: Faulty(actions, quantity, at=5), n_envs=1, seed=0)
    model = cls("MlpPolicy", env, **SMALL, device=device)
    before = parameter_vector(model.policy)
    with pytest.raises(NonFiniteError, match=f"Non-finite {quantity} in environment 0"):
        model.learn(32)
    assert th.equal(before, parameter_vector(model.policy))


@BOTH
@pytest.mark.parametrize("actions", ["discrete", "box_6", "multi_discrete", "multi_binary"])
def test_an_actor_that_overflowed_is_named(cls, actions, device):
    from toy_environments import ACTION_SPACES

    model = cls("MlpPolicy", toy(action=ACTION_SPACES[actions]), **SMALL, device=device)
    with th.no_grad():
        model.policy.action_net.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="Non-finite (action|log-probability) in environment 0"):
        model.learn(32)
    assert float(th.ones(2, device=device).sum()) == 2  # the device is still of use


@BOTH
def test_a_bad_minibatch_is_skipped_and_the_others_count(cls, device):
    model = cls("MlpPolicy", toy(), **SMALL, device=device)
    start(model)
    collect(model)
    before = parameter_vector(model.policy)
    model.rollout_buffer.returns[3, 2] = np.nan
    model.train()
    after = parameter_vector(model.policy)
    assert bool(th.isfinite(after).all()) and not th.equal(before, after)
    assert 0 < model.logger.name_to_value["train/skipped_updates"]


@BOTH
def test_training_ends_if_no_minibatch_is_good(cls, device):
    model = cls("MlpPolicy", toy(), **SMALL, device=device)
    start(model)
    collect(model)
    before = parameter_vector(model.policy)
    model.rollout_buffer.returns[:] = np.nan
    with pytest.raises(NonFiniteError, match="updates in a row"):
        model.train()
    if cls is PPO:
        assert th.equal(before, parameter_vector(model.policy))
    assert bool(th.isfinite(parameter_vector(model.policy)).all())
