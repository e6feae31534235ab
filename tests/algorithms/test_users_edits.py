"""
A user may do to our models whatever stock allows, between rollouts and in the middle of one, and gets stock's numbers.

The engines keep copies and views of what belongs to the policy; each test here changes what they were made from.
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from edited_models import OPTIONS, check, parameters_of
from edits import BETWEEN, DURING
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_environments import start

from sb3_policyopt import PPO, TRPO

MODELS = pytest.mark.parametrize(
    ("cls", "space"),
    [
        (PPO, "box"),
        *(pytest.param(*model, marks=pytest.mark.thinned(4)) for model in ((PPO, "dict"), (TRPO, "box"))),
        pytest.param(TRPO, "dict", marks=pytest.mark.slow),
    ],
)


@pytest.mark.thinned(2)
@MODELS
@pytest.mark.parametrize("edit", BETWEEN, ids=lambda edit: edit.__name__)
def test_an_edit_between_rollouts(edit: Callable[..., Any], space: str, cls: type[Any]) -> None:
    check(cls, space, "box_6", [[], [edit], []], [[], [], []])


@pytest.mark.thinned(2)
@MODELS
@pytest.mark.parametrize("edit", DURING, ids=lambda edit: edit.__name__)
def test_an_edit_in_the_middle_of_a_rollout(edit: Callable[..., Any], space: str, cls: type[Any]) -> None:
    check(cls, space, "discrete", [[], []], [[], [(3, edit)]])


@pytest.mark.parametrize("cls", [PPO, TRPO])
@settings(max_examples=10)
@given(data=st.data())
def test_any_edits_at_any_time(cls: type[Any], data: Any) -> None:
    space, action = (
        data.draw(st.sampled_from(["box", "dict"])),
        data.draw(st.sampled_from(["box_6", "discrete", "multi_discrete"])),
    )
    between = [data.draw(st.lists(st.sampled_from(BETWEEN), max_size=3), label="between") for _ in range(3)]
    steps = st.tuples(st.integers(0, 7), st.sampled_from(DURING))
    during = [data.draw(st.lists(steps, max_size=2), label="during") for _ in range(3)]
    check(cls, space, action, between, during)


def model_in(wrapper: type[Any], cls: type[Any]) -> Any:
    """A model that is about to collect, and whose environment holds its policy."""
    env = wrapper(gym.make("Pendulum-v1"))
    model = cls("MlpPolicy", env, **{**OPTIONS[cls], "n_steps": 16})
    env.policy = model.policy
    start(model)
    return model


def collect_without_callback(model: Any) -> None:
    assert model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, 16)


class Hooking(gym.Wrapper):
    """An environment that sets a hook in its fourth step, and another module in its seventh, without a callback."""

    policy: Any = None
    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 4:
            self.policy.value_net.register_forward_hook(lambda _module, _input, output: output + 100)
        if self.steps == 7:
            layer = th.nn.Linear(64, 1)
            th.nn.init.constant_(layer.weight, 0.0)
            th.nn.init.constant_(layer.bias, 7.0)
            self.policy.value_net = layer
        return super().step(action)


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_an_environment_may_set_hooks_and_modules(cls: type[Any]) -> None:
    model = model_in(Hooking, cls)
    collect_without_callback(model)
    values = model.rollout_buffer.values[:, 0]
    assert (abs(values[:4]) < 10).all() and (abs(values[4:7] - 100) < 10).all() and (values[7:] == 7).all()


class Editing(gym.Wrapper):
    """An environment that changes the policy in its seventh step, without a callback that could have done it."""

    policy: Any = None
    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 7:
            for parameter in self.policy.parameters():
                parameter.data.mul_(0.5)
        if self.steps == 9:
            for parameter in self.policy.parameters():
                parameter.data = parameter.data * 1.5
        return super().step(action)


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_an_environment_may_change_the_numbers_and_memory_of_parameters(cls: type[Any]) -> None:
    model = model_in(Editing, cls)
    before = parameters_of(model)
    collect_without_callback(model)
    buffer = model.rollout_buffer
    for step, scale in ((3, 1.0), (8, 0.5), (12, 0.75)):
        with th.no_grad():
            for name, parameter in model.policy.named_parameters():
                parameter.copy_(before[name] * scale)
            value = model.policy.predict_values(th.as_tensor(buffer.observations[step]))
        np.testing.assert_allclose(buffer.values[step], value.flatten(), rtol=1e-5, atol=1e-6)
