"""Spaces at the edge of what is served, which engine serves, and how it says why."""

from typing import Any

import numpy as np
import pytest
import torch as th
from edited_models import ALGORITHMS, OPTIONS, collect, difference, model_of, parameters_of
from gymnasium import spaces
from stable_baselines3 import PPO as StockPPO
from toy_environments import copy_rollout, start, toy

from sb3_policyopt import PPO
from sb3_policyopt.maths.terms import Terms
from sb3_policyopt.objectives import Objective
from sb3_policyopt.on_policy import PolicyOptimization

# ------------------------------------------------------------------ spaces


@ALGORITHMS
@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_actions_of_any_type(dtype: type[Any], cls: type[Any]) -> None:
    space = spaces.Box(-2, 2, (2,), dtype)
    models = [cls("MlpPolicy", toy(action=space), **OPTIONS[cls], engine=engine) for engine in ("auto", "autograd")]
    if cls is PPO:
        models.insert(0, StockPPO("MlpPolicy", toy(action=space), **OPTIONS[cls]))
    for model in models:
        start(model)
        collect(model, [])
    for model in models[1:]:
        copy_rollout(models[0].rollout_buffer, model.rollout_buffer)
    for model in models:
        np.random.seed(0)
        th.manual_seed(0)
        model.train()
    assert all(difference(parameters_of(model), parameters_of(models[0])) <= 1e-5 for model in models[1:])
    assert models[-2].engine_in_use is None or models[-1].engine_in_use.name == "autograd"


@ALGORITHMS
@pytest.mark.parametrize(
    "space", [spaces.Discrete(3, start=2), spaces.Discrete(3, start=-1), spaces.MultiDiscrete([3, 2], start=[-1, 0])]
)
def test_discrete_observations_out_of_range_are_named(space: spaces.Space[Any], cls: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"none of 0 … 2.*start"):
        cls("MlpPolicy", toy(space), **OPTIONS[cls]).learn(64)


@ALGORITHMS
def test_a_large_discrete_space_needs_no_square_of_it(cls: type[Any]) -> None:
    model = cls("MlpPolicy", toy(spaces.Discrete(3_000), n_envs=1), **{**OPTIONS[cls], "n_steps": 16})
    model.prepare_engine()
    features = model.engine_in_use.features(np.array([0.0, 2_999.0]))
    assert features.shape == (2, 3_000) and features[1, 2_999] == 1 and features.sum() == 2


# ------------------------------------------------------------------ which engine, and why


def test_the_reason_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(PPO, verbose=1).learn(32)
    assert "Engine: closed_form (all of the policy has a closed form; on cpu: " in capsys.readouterr().out
    model.learn(32, reset_num_timesteps=False)
    assert "Engine:" not in capsys.readouterr().out
    model.policy.mlp_extractor.policy_net[1].register_forward_hook(lambda *_: None)
    model.learn(32, reset_num_timesteps=False)
    assert "Engine: autograd (Tanh has a hook or a method of its own; on cpu: " in capsys.readouterr().out
    assert model_of(PPO, engine="autograd").prepare_engine().reason.startswith('engine="autograd";')


@ALGORITHMS
def test_every_name_of_an_engine_can_be_asked_for(cls: type[Any]) -> None:
    for name in ("closed_form", "hybrid", "autograd"):
        model = model_of(cls, engine=name).learn(32)
        assert model.engine_in_use.name == name
        assert model_of(cls, engine=model.engine_in_use.name).engine == name
    with pytest.raises(ValueError, match=r'engine="hybrid" cannot serve this policy: the action distribution is'):
        cls("MlpPolicy", "Pendulum-v1", engine="hybrid", use_sde=True, n_steps=32, batch_size=32, device="cpu").learn(32)


def test_an_algorithm_of_another_package_is_served_by_autograd() -> None:
    """Its hooks are its own: no closed form can know them."""

    class Reinforce(PolicyOptimization):
        hooks = ("loss",)

        def loss(self, batch: Any, coefficients: Any) -> tuple[th.Tensor, Terms]:
            values, log_prob, _ = self.policy.evaluate_actions(batch.observations, batch.actions)
            loss = (values.flatten() - batch.returns).pow(2).mean() - (log_prob * batch.advantages).mean()
            return loss, {"value_loss": loss.detach()}

        def train(self) -> None:
            model, objective = self.start_update(), Objective.of(self.loss, None)
            with model.updating(self.batch_size) as optimiser:
                for batch in model.data(self.rollout_buffer).minibatches(self.batch_size, normalized=False):
                    loss: Any = model.gradient(objective, batch)["loss"]
                    optimiser.step(0.5, loss)

    options: dict[str, Any] = {"gamma": 0.99, "gae_lambda": 1.0, "normalize_advantage": False, "seed": 0, "device": "cpu"}
    model: Any = Reinforce("MlpPolicy", toy(), learning_rate=1e-3, n_steps=8, batch_size=16, **options)
    before = parameters_of(model)
    model.learn(32)
    assert model.engine_in_use.name == "autograd" and "loss" in model.engine_in_use.reason
    assert difference(before, parameters_of(model)) > 1e-4
