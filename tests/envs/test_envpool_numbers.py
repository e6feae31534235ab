"""EnvPool's dicts of observations with numbers among them."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO as StockPPO

from sb3_policyopt import PPO
from sb3_policyopt.envs import make_envpool

envpool = pytest.importorskip("envpool")


def test_numbers_in_dict_observations() -> None:
    """SB3's extractors need an axis. Numbers are those that EnvPool gives by itself."""
    bare = envpool.make("HumanoidStand-v1", env_type="gymnasium", num_envs=3, seed=[5, 6, 7])
    expected, _ = bare.reset()
    env = make_envpool("HumanoidStand-v1", 3, seed=5)
    observations: Any = env.reset()
    assert expected["head_height"].shape in ((3,), (3, 1)) and observations["head_height"].shape == (3, 1)
    space: Any = env.observation_space
    assert space["head_height"].shape == (1,) and space["head_height"].dtype == observations["head_height"].dtype
    action = np.zeros((3, *(env.action_space.shape or ())), np.float32)
    for _ in range(3):
        for name, values in observations.items():
            np.testing.assert_array_equal(values.reshape(3, -1), expected[name].reshape(3, -1))
        observations, expected = env.step(action)[0], bare.step(action)[0]
    StockPPO("MultiInputPolicy", env, n_steps=8, batch_size=24, n_epochs=1).learn(24)
    ours = PPO("MultiInputPolicy", env, n_steps=8, batch_size=24, n_epochs=1, device="cpu").learn(24)
    assert ours.engine_in_use is not None and ours.engine_in_use.name == "hybrid"
