"""Trainings whose graphs are compared with computing without them."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from toy_environments import IMAGE

SCHEDULED: dict[str, Any] = {
    "learning_rate": "lin_1e-3",
    "clip_range": lambda left: 0.05 + 0.2 * left,
    "clip_range_vf": lambda left: 0.1 + 0.2 * left,
    "batch_size": 40,  # the last minibatch has 16 rows
    "n_epochs": 2,
    "ent_coef": 0.01,
}


def trained(algorithm: type[Any], env: Any, callback: BaseCallback | None = None, n: int = 4, **options: Any) -> Any:
    policy = "CnnPolicy" if env.observation_space.shape == IMAGE.shape else "MlpPolicy"
    with pytest.warns(UserWarning, match="mini-batch size"):
        model = algorithm(policy, env, **{"n_steps": 24, "seed": 0, "device": "cpu", **options})
    return model.learn(n * 24 * env.num_envs, callback)


def assert_same(model: Any, other: Any, atol: float = 1e-5) -> None:
    for name, value in other.policy.state_dict().items():
        np.testing.assert_allclose(model.policy.state_dict()[name], value, rtol=0, atol=atol, err_msg=name)
