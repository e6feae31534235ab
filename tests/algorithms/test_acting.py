"""What the engines act by is what the policy computes: log-probabilities, values, and parameters changed in mid-rollout."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from toy_environments import ACTION_SPACES, toy

from sb3_policyopt import PPO

OBSERVATIONS = spaces.Box(-1, 1, (5,), np.float32)
NETWORKS = {
    "joined": {"pi": [8, 7], "vf": [9, 6]},
    "joined, no hidden layer": {"pi": [], "vf": []},
    "of different depth": {"pi": [8], "vf": [9, 6]},
    "too wide to join": {"pi": [400, 400], "vf": [400, 400]},
}


class WatchAndDisturb(BaseCallback):
    """Compares each step with the policy itself; then changes all parameters, as a callback may at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def _on_step(self) -> bool:
        observations, actions = self.locals["obs_tensor"], th.as_tensor(self.locals["actions"])
        with th.no_grad():
            values, log_prob, _ = self.model.policy.evaluate_actions(observations, actions)
            np.testing.assert_allclose(self.locals["values"], values, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(self.locals["log_probs"], log_prob, rtol=1e-4, atol=1e-4)
            for parameter in self.model.policy.parameters():
                parameter.data.add_(0.05 * th.randn_like(parameter))
        self.steps += 1
        return True


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("action", ["box_6", "discrete", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("activation", [pytest.param(nn.Tanh, marks=pytest.mark.fast), nn.ELU])
def test_steps_are_the_policys_own_whatever_a_callback_does_to_it(networks, action, n_envs, activation):
    options = {"net_arch": NETWORKS[networks], "activation_fn": activation}
    env = toy(OBSERVATIONS, ACTION_SPACES[action], n_envs=n_envs)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=options, seed=0, engine="closed_form")
    watch = WatchAndDisturb()
    model.learn(16 * n_envs, callback=watch)
    assert watch.steps == 16
    joined = model.engine_in_use.acting.joined
    assert (joined is None) == (networks == "of different depth")
