"""Models that are edited between rollouts and in the middle of one, and compared with stock and autograd."""

from typing import Any

import numpy as np
import pytest
import torch as th
from edits import Edit
from sb3_contrib import TRPO as StockTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.callbacks import BaseCallback
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, copy_rollout, start, toy

from sb3_policyopt import PPO, TRPO

OPTIONS: dict[type[Any], dict[str, Any]] = {
    PPO: {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"},
    TRPO: {"n_steps": 8, "batch_size": 16, "n_critic_updates": 2, "cg_max_steps": 4, "seed": 0, "device": "cpu"},
}
STOCK: dict[type[Any], Any] = {PPO: StockPPO, TRPO: StockTRPO}
POLICIES = {"box": "MlpPolicy", "dict": "MultiInputPolicy"}  # closed form and hybrid
TOLERANCE = 2e-5
"""Of parameters of order 1 after two updates. A step of Adam is 3e-4; an edit that an engine misses moves more than that."""


class Watch(BaseCallback):
    """Compares the numbers of each step with those of the policy, then makes the edits that are due."""

    def __init__(self, edits: list[tuple[int, Edit]]) -> None:
        super().__init__()
        self.edits = edits
        self.step = 0

    def _on_step(self) -> bool:
        observations, actions = self.locals["obs_tensor"], th.as_tensor(np.asarray(self.locals["actions"]))
        shape = self.model.action_space.shape
        assert shape is not None
        actions = actions.reshape(len(actions), *shape)
        with th.no_grad():
            policy: Any = self.model.policy
            values, log_prob, _ = policy.evaluate_actions(observations, actions)
            np.testing.assert_allclose(self.locals["values"].flatten(), values.flatten(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(self.locals["log_probs"].flatten(), log_prob, rtol=1e-4, atol=1e-4)
        for when, edit in self.edits:
            if when == self.step:
                edit(self.model)
        self.step += 1
        return True


def models_of(cls: type, space: str, action: str) -> dict[str, Any]:
    """
    Ours with every engine that can be chosen, with the same parameters, and PPO of stock. TRPO bounds another KL divergence
    than sb3-contrib by design.
    """
    kinds = [("stock", STOCK[cls], {}), ("auto", cls, {}), ("autograd", cls, {"engine": "autograd"})]
    models = {
        name: kind(POLICIES[space], toy(OBSERVATION_SPACES[space], ACTION_SPACES[action]), **OPTIONS[cls], **options)
        for name, kind, options in kinds
        if kind is not StockTRPO
    }
    for model in models.values():
        start(model)
    return models


def collect(model: Any, edits: list[tuple[int, Edit]]) -> None:
    callback = model._init_callback(Watch(edits))
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def parameters_of(model: Any) -> dict[str, th.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}


def difference(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def check(cls: type, space: str, action: str, between: list[list[Edit]], during: list[list[tuple[int, Edit]]]) -> None:
    """
    Collect and update as often as there are edits. Every model collects by itself, which compares its steps with its policy;
    then all update from stock's rollout.
    """
    models = models_of(cls, space, action)
    reference = "stock" if cls is PPO else "autograd"
    for round_, (before, at) in enumerate(zip(between, during, strict=True)):
        for model in models.values():
            for edit in before:
                edit(model)
            th.manual_seed(round_)
            collect(model, at)
        for name, model in models.items():
            if name != reference:
                copy_rollout(models[reference].rollout_buffer, model.rollout_buffer)
        for model in models.values():
            np.random.seed(round_)
            th.manual_seed(round_)
            model.train()
        found = {name: parameters_of(model) for name, model in models.items()}
        for name, parameters in found.items():
            where = f"{name} after update {round_}, engine {getattr(models[name], 'engine_in_use', None)}"
            assert difference(parameters, found[reference]) <= TOLERANCE * (round_ + 1), where
            assert all(th.isfinite(parameter).all() for parameter in parameters.values()), where


def update_twice(stock: Any, ours: Any) -> None:
    """Each collects, then both update from stock's rollout with the same random numbers."""
    for seed in range(2):
        for model in (stock, ours):
            collect(model, [])
        copy_rollout(stock.rollout_buffer, ours.rollout_buffer)
        for model in (stock, ours):
            np.random.seed(seed)
            th.manual_seed(seed)
            model.train()


ALGORITHMS = pytest.mark.parametrize("cls", [PPO, TRPO])
SPACES = pytest.mark.parametrize("space", POLICIES)


def model_of(cls: type, space: str = "box", action: str = "box_6", **options: Any) -> Any:
    return cls(POLICIES[space], toy(OBSERVATION_SPACES[space], ACTION_SPACES[action]), **{**OPTIONS[cls], **options})
