"""Models on the toy environments, ours and those of SB3 with the same arguments, for the tests of rollout buffers."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO as ContribTRPO
from stable_baselines3 import PPO as StockPPO
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, VECTOR, toy

from sb3_policyopt import PPO, TRPO

STOCK: dict[type[Any], Any] = {PPO: StockPPO, TRPO: ContribTRPO}
N_STEPS = 16
SMALL: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 16, "seed": 0, "device": "cpu"}
FEW: dict[type[Any], dict[str, Any]] = {PPO: {"n_epochs": 2}, TRPO: {"n_critic_updates": 2}}
ARRAYS = ("observations", "actions", "rewards", "returns", "episode_starts", "values", "log_probs", "advantages")
both = pytest.mark.parametrize("cls", [PPO, TRPO])


def make(
    cls: type[Any],
    algorithm: type[Any] | None = None,
    observation: spaces.Space[Any] = VECTOR,
    n_envs: int = 2,
    **options: Any,
) -> Any:
    """A model of ours, or of SB3 with the same arguments."""
    policy = "MultiInputPolicy" if observation is OBSERVATION_SPACES["dict"] else "MlpPolicy"
    return (algorithm or cls)(policy, toy(observation, ACTION_SPACES["discrete"], n_envs), **{**SMALL, **FEW[cls], **options})


def arrays(buffer: Any) -> dict[str, np.ndarray]:
    """All arrays of a buffer by name."""
    found = {name: getattr(buffer, name) for name in ARRAYS}
    if isinstance(buffer.observations, dict):
        del found["observations"]
        found.update({f"observations {key}": array for key, array in buffer.observations.items()})
    return found


def assert_same_update(cls: type[Any], stock: Any, ours: Any) -> None:
    """To rounding; TRPO's step of the actor (here with another stop of its linear solver) at least in its direction."""
    before = make(cls).policy.state_dict()
    after = ours.policy.state_dict()
    of_stock: list[th.Tensor] = []
    of_ours: list[th.Tensor] = []
    for name, value in stock.policy.state_dict().items():
        if cls is PPO or "value" in name:
            assert float((after[name] - value).abs().max()) < 1e-5, name
        else:
            for step, parameter in zip((of_stock, of_ours), (value, after[name]), strict=True):
                step.append((parameter - before[name]).flatten())
    if cls is TRPO:
        assert float(th.nn.functional.cosine_similarity(th.cat(of_stock), th.cat(of_ours), dim=0)) > 0.99
