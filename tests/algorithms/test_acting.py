"""What the engines act by is what the policy computes: log-probabilities, values, and parameters changed in mid-rollout."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from torch import nn
from toy_environments import ACTION_SPACES, toy
from watching import WatchAndDisturb

from sb3_policyopt import PPO

OBSERVATIONS = spaces.Box(-1, 1, (5,), np.float32)
NETWORKS = {
    "joined": {"pi": [8, 7], "vf": [9, 6]},
    "joined, no hidden layer": {"pi": [], "vf": []},
    "of different depth": {"pi": [8], "vf": [9, 6]},
    "too wide to join": {"pi": [400, 400], "vf": [400, 400]},
}


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("action", ["box_6", "discrete", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("activation", [pytest.param(nn.Tanh, marks=pytest.mark.fast), nn.ELU])
def test_steps_are_the_policys_own_whatever_a_callback_does_to_it(
    networks: str, action: str, n_envs: int, activation: type[Any]
) -> None:
    options = {"net_arch": NETWORKS[networks], "activation_fn": activation}
    env = toy(OBSERVATIONS, ACTION_SPACES[action], n_envs=n_envs)
    model: Any = PPO(
        "MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=options, seed=0, engine="closed_form"
    )
    watch = WatchAndDisturb()
    model.learn(16 * n_envs, callback=watch)
    assert watch.steps == 16
    joined = model.engine_in_use.acting.joined
    assert (joined is None) == (networks == "of different depth")
