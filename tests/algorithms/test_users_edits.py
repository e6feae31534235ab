"""
A user may do to our models whatever stock allows, between rollouts and in the middle of one, and gets stock's numbers.

The engines keep copies and views of what belongs to the policy; each test here changes what they were made from.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from edits import BETWEEN, DURING, Edit
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import TRPO as StockTRPO
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.callbacks import BaseCallback
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, copy_rollout, start, toy

from sb3_policyopt import PPO, TRPO

OPTIONS = {
    PPO: {"n_steps": 8, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"},
    TRPO: {"n_steps": 8, "batch_size": 16, "n_critic_updates": 2, "cg_max_steps": 4, "seed": 0, "device": "cpu"},
}
STOCK = {PPO: StockPPO, TRPO: StockTRPO}
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
        actions = actions.reshape(len(actions), *self.model.action_space.shape)
        with th.no_grad():
            values, log_prob, _ = self.model.policy.evaluate_actions(observations, actions)
            np.testing.assert_allclose(self.locals["values"].flatten(), values.flatten(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(self.locals["log_probs"].flatten(), log_prob, rtol=1e-4, atol=1e-4)
        for when, edit in self.edits:
            if when == self.step:
                edit(self.model)
        self.step += 1
        return True


def models_of(cls: type, space: str, action: str) -> dict[str, Any]:
    """Stock, and ours with every engine that can be chosen, with the same parameters."""
    models = {
        name: kind(POLICIES[space], toy(OBSERVATION_SPACES[space], ACTION_SPACES[action]), **OPTIONS[cls], **options)
        for name, kind, options in (
            ("stock", STOCK[cls], {}),
            ("auto", cls, {}),
            ("autograd", cls, {"engine": "autograd"}),
        )
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
    reference = "stock" if cls is PPO else "autograd"  # TRPO bounds another KL than sb3-contrib by design
    if cls is TRPO:
        del models["stock"]
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


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize("space", POLICIES)
@pytest.mark.parametrize("edit", BETWEEN, ids=lambda edit: edit.__name__)
def test_an_edit_between_rollouts(edit, space, cls):
    check(cls, space, "box_6", [[], [edit], []], [[], [], []])


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize("space", POLICIES)
@pytest.mark.parametrize("edit", DURING, ids=lambda edit: edit.__name__)
def test_an_edit_in_the_middle_of_a_rollout(edit, space, cls):
    check(cls, space, "discrete", [[], []], [[], [(3, edit)]])


@pytest.mark.parametrize("cls", [PPO, TRPO])
@settings(max_examples=15)
@given(data=st.data())
def test_any_edits_at_any_time(cls, data):
    space, action = (
        data.draw(st.sampled_from(["box", "dict"])),
        data.draw(st.sampled_from(["box_6", "discrete", "multi_discrete"])),
    )
    between = [data.draw(st.lists(st.sampled_from(BETWEEN), max_size=3), label="between") for _ in range(3)]
    steps = st.tuples(st.integers(0, 7), st.sampled_from(DURING))
    during = [data.draw(st.lists(steps, max_size=2), label="during") for _ in range(3)]
    check(cls, space, action, between, during)


class Editing(gym.Wrapper):
    """An environment that changes the policy in its seventh step, without a callback that could have done it."""

    policy: Any = None
    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 7:
            for parameter in self.policy.parameters():
                parameter.data.mul_(0.5)
        if self.steps == 9:
            for parameter in self.policy.parameters():
                parameter.data = parameter.data * 1.5
        return super().step(action)


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_an_environment_may_change_the_numbers_and_memory_of_parameters(cls):
    env = Editing(gym.make("Pendulum-v1"))
    model = cls("MlpPolicy", env, **{**OPTIONS[cls], "n_steps": 16})
    env.policy = model.policy
    start(model)
    before = parameters_of(model)
    assert model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, 16)
    buffer = model.rollout_buffer
    for step, scale in ((3, 1.0), (8, 0.5), (12, 0.75)):
        with th.no_grad():
            for name, parameter in model.policy.named_parameters():
                parameter.copy_(before[name] * scale)
            value = model.policy.predict_values(th.as_tensor(buffer.observations[step]))
        np.testing.assert_allclose(buffer.values[step], value.flatten(), rtol=1e-5, atol=1e-6)
