"""A policy that torch.compile wrapped trains as the policy does, with its masks and its memory."""

from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import MaskablePPO as StockMaskablePPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_policyopt import PPO, TRPO

N_FORBIDDEN = 10
OPTIONS: dict[str, Any] = {"n_steps": 32, "batch_size": 64, "seed": 0, "device": "cpu"}


def compiled(cls: type[Any], policy: str, env: Any, **options: Any) -> Any:
    model = cls(policy, env, **OPTIONS, **options)
    model.policy = th.compile(model.policy, backend="eager")
    return model


def masked() -> Any:
    return make_vec_env(lambda: InvalidActionEnvDiscrete(dim=20, n_invalid_actions=N_FORBIDDEN), n_envs=4, seed=0)


@pytest.mark.parametrize(
    ("cls", "policy"), [(StockMaskablePPO, "MlpPolicy"), (PPO, "MaskableMlpPolicy"), (TRPO, "MaskableMlpPolicy")]
)
def test_masks_hold(cls: type[Any], policy: str) -> None:
    model = compiled(cls, policy, masked()).learn(256)
    buffer = model.rollout_buffer
    masks = buffer.action_masks.reshape(-1, 20)
    assert (masks.sum(1) == 20 - N_FORBIDDEN).all()
    assert masks[np.arange(len(masks)), buffer.actions.reshape(-1).astype(int)].all()


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize(
    "policy",
    ["MlpPolicy", *(pytest.param(name, marks=pytest.mark.slow) for name in ("MlpLstmPolicy", "MaskableMlpLstmPolicy"))],
)
def test_it_trains_as_the_policy_does(cls: type[Any], policy: str) -> None:
    found = []
    for wrap in (compiled, lambda kind, name, env, **options: kind(name, env, **OPTIONS, **options)):
        env = masked() if "Mask" in policy else make_vec_env("CartPole-v1", n_envs=4, seed=0)
        model = wrap(cls, policy, env, engine="autograd").learn(256)
        assert model.engine_in_use.name == "autograd"
        found.append(th.nn.utils.parameters_to_vector(model.policy.parameters()).detach())
    th.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_auto_leaves_it_to_torch_with_stocks_numbers() -> None:
    found = []
    for cls in (StockPPO, PPO):
        model = compiled(cls, "MlpPolicy", make_vec_env("CartPole-v1", n_envs=4, seed=0)).learn(256)
        found.append(th.nn.utils.parameters_to_vector(model.policy.parameters()).detach())
    assert model.engine_in_use.name == "autograd"
    th.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
