"""Trainings under ``torch.autocast``: autograd serves, and parameters and rollouts stay float32."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch as th
from edited_models import OPTIONS, POLICIES
from stable_baselines3.common.callbacks import BaseCallback
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, toy

from sb3_policyopt import PPO, TRPO

ALGORITHMS = pytest.mark.parametrize("cls", [PPO, TRPO])


@ALGORITHMS
@pytest.mark.parametrize("dtype", [th.float16, th.bfloat16])
@pytest.mark.parametrize("action", ["discrete", "box_1"])
def test_autocast_is_honoured(action: str, dtype: th.dtype, cls: type[Any]) -> None:
    model, plain = (
        cls(POLICIES["box"], toy(OBSERVATION_SPACES["box"], ACTION_SPACES[action]), **{**OPTIONS[cls], **options})
        for options in ({}, {"engine": "autograd"})
    )
    plain.learn(64)
    with th.autocast("cpu", dtype=dtype):
        model.learn(64)
    parameters, expected = (th.nn.utils.parameters_to_vector(one.policy.parameters()) for one in (model, plain))
    assert 1e-7 < float((parameters - expected).abs().max()) < 0.5 and parameters.dtype == th.float32
    assert model.rollout_buffer.values.dtype == np.float32
    assert model.engine_in_use.name == "autograd" and "autocast" in model.engine_in_use.reason


class Entering(BaseCallback):
    """Trains within ``torch.autocast`` from the first rollout on."""

    def __init__(self) -> None:
        super().__init__()
        self.autocast: Any = th.autocast("cpu", dtype=th.bfloat16)

    def _on_rollout_start(self) -> None:
        if not th.is_autocast_enabled("cpu"):
            self.autocast.__enter__()

    def _on_training_end(self) -> None:
        self.autocast.__exit__(None, None, None)

    def _on_step(self) -> bool:
        return True


@ALGORITHMS
@pytest.mark.parametrize("action", ["discrete", "box_1"])
def test_every_pass_has_the_weights_of_its_time(action: str, cls: type[Any]) -> None:
    """Torch keeps what it has cast until autocast ends. The reference is torch's own switch, with which it keeps nothing."""
    trained = []
    for cached, callback in ((True, None), (False, None), (True, Entering())):
        model = cls(POLICIES["box"], toy(OBSERVATION_SPACES["box"], ACTION_SPACES[action]), **OPTIONS[cls])
        before = th.is_autocast_cache_enabled()
        with th.autocast("cpu", dtype=th.bfloat16, cache_enabled=cached) if callback is None else nullcontext():
            model.predict(model.observation_space.sample())  # torch has cast the first weights by now
            model.learn(192, callback)
            assert th.is_autocast_cache_enabled() == cached
            values = model.policy.predict_values(th.zeros(1, *model.observation_space.shape))
        assert th.is_autocast_cache_enabled() == before
        trained.append((th.nn.utils.parameters_to_vector(model.policy.parameters()), values.float()))
    (parameters, values), (expected, expected_values), (entered, _) = trained
    assert th.equal(parameters, expected) and th.equal(values, expected_values) and th.equal(entered, expected)


@ALGORITHMS
def test_states_of_autocast_are_stored_as_float32(cls: type[Any]) -> None:
    pytest.importorskip("sb3_contrib")
    env = toy(OBSERVATION_SPACES["box"], ACTION_SPACES["discrete"])
    model = cls("MlpLstmPolicy", env, **OPTIONS[cls])
    with th.autocast("cpu", dtype=th.bfloat16):
        model.learn(64)
    states = model.rollout_buffer.hidden_states_pi
    assert states.dtype == np.float32 and np.abs(states).max() > 0
    assert (th.as_tensor(states).bfloat16().float().numpy() == states).all()  # what was computed, and nothing finer
