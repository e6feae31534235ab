"""Policies whose extractor alone needs torch: when the hybrid engine serves them, and that it does what autograd does."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import nn
from toy_environments import ACTION_SPACES, OBSERVATION_SPACES, VECTOR, collect, copy_rollout, parameter_vector, start, toy
from watching import WatchAndDisturb

from sb3_policyopt import PPO, TRPO

SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "seed": 0, "device": "cpu"}
FEW: dict[type[Any], dict[str, Any]] = {PPO: {"n_epochs": 2}, TRPO: {"cg_max_steps": 3, "n_critic_updates": 2}}
POLICIES = {"image": "CnnPolicy", "dict": "MultiInputPolicy", "dict_with_image": "MultiInputPolicy", "box": "MlpPolicy"}


class Learned(BaseFeaturesExtractor):
    """Features of a vector that are learned."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=6)
        self.layer = nn.Linear(observation_space.shape[0], 6)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.tanh(self.layer(observations.to(self.layer.weight.dtype)))


LEARNED: dict[str, dict[str, Any]] = {"policy_kwargs": {"features_extractor_class": Learned}}


def model_of(cls: type[Any], space: str, action: str = "discrete", **options: Any) -> Any:
    env = toy(OBSERVATION_SPACES[space], ACTION_SPACES[action])
    policy_kwargs = options.pop("policy_kwargs", {})
    if space == "box":
        policy_kwargs = {**LEARNED["policy_kwargs"], **policy_kwargs}
    return cls(
        POLICIES[space],
        env,
        **{**SMALL, **(FEW[PPO] if issubclass(cls, PPO) else FEW[TRPO]), **options},
        policy_kwargs=policy_kwargs,
    )


@pytest.mark.parametrize("cls", [PPO, TRPO])
@pytest.mark.parametrize("space", POLICIES)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("action", ["box_6", "discrete", "multi_discrete"])
def test_updates_are_those_of_autograd_to_rounding(cls: type[Any], space: str, shared: bool, action: str) -> None:
    models = [
        model_of(cls, space, action, engine=engine, policy_kwargs={"share_features_extractor": shared})
        for engine in ("autograd", "auto")
    ]
    exact, hybrid = models
    collect(exact)
    start(hybrid)
    copy_rollout(exact.rollout_buffer, hybrid.rollout_buffer)
    before = parameter_vector(exact.policy)
    assert th.equal(before, parameter_vector(hybrid.policy))
    for model in models:
        np.random.seed(0)
        model.train()
    assert [model.engine_in_use.name for model in models] == ["autograd", "hybrid"]
    after = parameter_vector(exact.policy)
    assert not th.equal(before, after)
    # Adam moves an entry by the learning rate, 3e-4, whatever its gradient: a hundredth of a step, for gradients near zero.
    close = (after - parameter_vector(hybrid.policy)).abs() <= 3e-6 + 1e-3 * (after - before).abs()
    assert close.float().mean() > 0.999
    assert (after - parameter_vector(hybrid.policy)).norm() <= 0.01 * (after - before).norm()
    logs = [model.logger.name_to_value for model in models]
    assert set(logs[0]) == set(logs[1])
    for name, value in logs[0].items():
        assert logs[1][name] == (value if isinstance(value, str) else pytest.approx(value, rel=2e-3, abs=2e-5)), name


@pytest.mark.parametrize("space", POLICIES)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("action", ["box_6", "discrete", "multi_binary"])
def test_steps_are_the_policys_own_whatever_a_callback_does_to_it(space: str, shared: bool, action: str) -> None:
    model = model_of(PPO, space, action, policy_kwargs={"share_features_extractor": shared})
    watch = WatchAndDisturb()
    model.learn(64, callback=watch)
    assert watch.steps == 16 and model.engine_in_use.name == "hybrid"


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_the_same_seed_gives_the_same_model(cls: type[Any]) -> None:
    twins = [parameter_vector(model_of(cls, "dict_with_image").learn(64).policy) for _ in range(2)]
    assert th.equal(*twins)


class OtherLoss(PPO):
    def loss(self, batch: Any, coefficients: Any) -> tuple[th.Tensor, dict[str, Any]]:
        return super().loss(batch, coefficients)


def exchange_an_extractor(policy: Any) -> None:
    policy.vf_features_extractor = Learned(VECTOR)


REASONS: dict[str, tuple[type[Any], dict[str, Any], Any]] = {
    "asked for": (PPO, {"engine": "autograd"}, None),
    "a loss of one's own": (OtherLoss, {}, None),
    "gSDE": (PPO, {"use_sde": True, "action": "box_6"}, None),
    "a frozen head": (PPO, {}, lambda policy: policy.value_net.requires_grad_(False)),
    "a hook on a network": (PPO, {}, lambda policy: policy.mlp_extractor.register_forward_hook(lambda *_: None)),
    "a hook on the policy": (PPO, {}, lambda policy: policy.register_forward_hook(lambda *_: None)),
    "another head": (PPO, {}, lambda policy: setattr(policy, "value_net", nn.Sequential(policy.value_net))),
    "an extractor exchanged": (PPO, {}, exchange_an_extractor),
}


@pytest.mark.parametrize("reason", REASONS)
def test_where_the_networks_are_unusual_autograd_does_it_all(reason: str) -> None:
    cls, options, change = REASONS[reason]
    model = model_of(cls, "box", **options)
    if change is not None:
        change(model.policy)
    assert model.prepare_engine().name == "autograd"
    model.learn(32)


def test_a_hook_on_the_extractor_is_called_as_ever() -> None:
    model, calls = model_of(PPO, "box"), []
    model.policy.features_extractor.register_forward_hook(lambda *_: calls.append(1))
    model.learn(32)
    assert model.engine_in_use.name == "hybrid"
    assert len(calls) >= 8 + 2 * 4  # 8 steps, 2 epochs of 4 minibatches; and values of cut episodes


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_a_frozen_extractor_stays_and_thawed_it_learns(cls: type[Any]) -> None:
    model = model_of(cls, "box")
    model.policy.features_extractor.requires_grad_(False)
    frozen = model.policy.features_extractor.layer.weight.clone()
    model.learn(64)
    assert th.equal(model.policy.features_extractor.layer.weight, frozen)
    model.policy.features_extractor.requires_grad_(True)
    model.learn(64, reset_num_timesteps=False)
    assert not th.equal(model.policy.features_extractor.layer.weight, frozen)
    assert model.engine_in_use.name == "hybrid"


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_a_plain_extractor_needs_no_torch_at_all(cls: type[Any]) -> None:
    options: dict[str, Any] = {
        "policy_kwargs": {"features_extractor_class": FlattenExtractor, "share_features_extractor": False}
    }
    assert model_of(cls, "box", **options).prepare_engine().name == "closed_form"


def test_the_closed_form_says_what_stands_in_its_way() -> None:
    with pytest.raises(ValueError, match="features extractor is Learned"):
        model_of(PPO, "box", engine="closed_form").prepare_engine()
