"""Policies of the user's own that stock trains: other distributions, other precisions, other extractors, bounds."""

from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    Kumaraswamy,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.distributions.transforms import AffineTransform
from torch.utils.checkpoint import checkpoint
from toy_environments import box, collect, copy_rollout, parameter_vector, start, toy

from sb3_policyopt import PPO, TRPO

SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "seed": 0, "device": "cpu"}


def on_one_rollout(first: Any, second: Any) -> tuple[Any, Any]:
    """Give the second model the first one's parameters, and both the rollout of the first one."""
    second.policy.load_state_dict(first.policy.state_dict())
    collect(first)
    start(second)
    copy_rollout(first.rollout_buffer, second.rollout_buffer)
    return first, second


def updated(*models: Any) -> tuple[Any, ...]:
    """Update each model with the same random numbers."""
    for model in models:
        np.random.seed(0)
        model.train()
    return models


# ------------------------------------------------------------------ distributions

MAKERS: dict[str, Any] = {
    "independent": lambda mean, std: Independent(Normal(mean, std), 1),
    "multivariate": lambda mean, std: MultivariateNormal(mean, scale_tril=th.diag_embed(std)),
    "scaled": lambda mean, std: Independent(TransformedDistribution(Normal(mean, std), [AffineTransform(0.0, 2.0)]), 1),
    "moved": lambda mean, std: Independent(
        TransformedDistribution(Normal(th.zeros_like(mean), std), [AffineTransform(mean, 1.0)]), 1
    ),
    "power": lambda mean, std: Independent(Kumaraswamy(mean.exp(), std), 1),
    "mixture": lambda mean, std: MixtureSameFamily(
        Categorical(logits=mean[:, :2]), Independent(Normal(mean[:, None].repeat(1, 2, 1), std[:, None]), 1)
    ),
}


class Around(Distribution):
    """SB3's distribution around one of torch's."""

    distribution: Any

    def __init__(self, kind: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = kind

    def proba_distribution(self, mean: th.Tensor, log_std: th.Tensor) -> "Around":
        self.mean = mean
        self.distribution = MAKERS[self.kind](mean, log_std.exp().expand_as(mean))
        return self

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    actions_from_params = log_prob_from_params = proba_distribution_net

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return self.distribution.log_prob(actions)

    def entropy(self) -> th.Tensor | None:
        return None

    def sample(self) -> th.Tensor:
        return self.distribution.sample()

    def mode(self) -> th.Tensor:
        return self.mean


def policy_around(kind: str) -> type[ActorCriticPolicy]:
    class Policy(ActorCriticPolicy):
        def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
            return Around(kind).proba_distribution(self.action_net(latent_pi), self.log_std)

    return Policy


@pytest.mark.parametrize("kind", ["independent", "multivariate", "scaled"])
def test_T5_trpo_with_a_distribution_of_torch_is_trpo_with_sb3s(kind: str) -> None:
    """The same Gaussian in other words; twice its action has the same KL divergences and slopes, as the actions are given."""
    models = on_one_rollout(*(TRPO(policy, toy(action=box(3)), **SMALL) for policy in ("MlpPolicy", policy_around(kind))))
    if kind == "scaled":  # ln p(2x) = ln p(x) − 3 ln 2
        models[1].rollout_buffer.actions *= 2
        models[1].rollout_buffer.log_probs -= 3 * np.log(2)
    plain, around = (model.logger.name_to_value for model in updated(*models))
    assert around["train/is_line_search_success"] == 1 and around["train/kl_divergence_loss"] > 1e-4
    for name in ("train/kl_divergence_loss", "train/policy_objective", "train/grad_norm"):
        np.testing.assert_allclose(around[name], plain[name], rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("kind", "named"), [("mixture", "MixtureSameFamily"), ("moved", "TransformedDistribution")])
def test_a_distribution_whose_kl_is_not_known_is_named(kind: str, named: str) -> None:
    """A transform that the parameters move is another one for each policy, so that the KL divergence is not that before it."""
    with pytest.raises(ValueError, match=rf"{named} cannot be made again from its parameters .* or PPO"):
        TRPO(policy_around(kind), toy(action=box(3)), **SMALL).learn(64)
    PPO(policy_around(kind), toy(action=box(3)), **SMALL).learn(64)


def test_a_distribution_whose_kl_torch_takes_for_a_constant_is_named() -> None:
    with pytest.raises(ValueError, match=r"torch does not know the KL divergence of Kumaraswamy; .* or PPO"):
        TRPO(policy_around("power"), toy(action=box(3)), **SMALL).learn(64)
    PPO(policy_around("power"), toy(action=box(3)), **SMALL).learn(64)


class InParts(Distribution):
    """Several of SB3's distributions under the name that sb3-contrib has for its own parts."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.distributions: list[Any] = [DiagGaussianDistribution(1), DiagGaussianDistribution(1)]

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    actions_from_params = log_prob_from_params = proba_distribution_net

    def proba_distribution(self, mean: th.Tensor, log_std: th.Tensor) -> "InParts":
        for i, part in enumerate(self.distributions):
            part.proba_distribution(mean[:, i : i + 1], log_std[i : i + 1])
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return th.stack([part.log_prob(actions[:, i : i + 1]) for i, part in enumerate(self.distributions)]).sum(0)

    def entropy(self) -> th.Tensor | None:
        return None

    def sample(self) -> th.Tensor:
        return th.cat([part.sample() for part in self.distributions], 1)

    def mode(self) -> th.Tensor:
        return th.cat([part.mode() for part in self.distributions], 1)


class PolicyInParts(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_dist = InParts()  # type: ignore[assignment]

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        return self.action_dist.proba_distribution(self.action_net(latent_pi), self.log_std)  # type: ignore[call-arg, arg-type]


def test_a_list_of_distributions_of_the_users_own_stays_and_trpo_says_what_it_misses() -> None:
    model: Any = PPO(PolicyInParts, toy(action=box(2)), **SMALL).learn(64)
    assert len(model.policy.action_dist.distributions) == 2
    model.learn(64)
    with pytest.raises(ValueError, match=r"InParts is not known.*`distribution`"):
        TRPO(PolicyInParts, toy(action=box(2)), **SMALL).learn(64)


# ------------------------------------------------------------------ precision, extractors, activations


def in_float64(model: Any) -> Any:
    model.policy.double()
    model.policy.features_extractor.register_forward_hook(lambda module, inputs, features: features.double())
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-3)
    return model


@pytest.mark.parametrize("cls", [PPO, TRPO])
def test_a_policy_in_float64_trains(cls: type[Any]) -> None:
    model = in_float64(cls("MlpPolicy", toy(), **SMALL))
    before = parameter_vector(model.policy)
    model.learn(128)
    assert model.policy.log_std.dtype == th.float64 and not th.equal(parameter_vector(model.policy), before)


def test_an_update_in_float64_is_stocks() -> None:
    models = on_one_rollout(*(in_float64(kind("MlpPolicy", toy(), **SMALL)) for kind in (stable_baselines3.PPO, PPO)))
    try:
        updated(*models)
    except RuntimeError as error:  # of stock, whose loss mixes both types
        if "Found dtype Float" not in str(error):
            raise
        pytest.skip(f"SB3 does not train in float64 with torch {th.__version__}")
    np.testing.assert_allclose(parameter_vector(models[1].policy), parameter_vector(models[0].policy), rtol=0, atol=1e-8)


class Checkpointed(BaseFeaturesExtractor):
    """Recomputes its second layer in the backward pass; torch's older way, which ``autograd.grad`` does not serve."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=6)
        self.first, self.second = nn.Linear(observation_space.shape[0], 6), nn.Linear(6, 6)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        hidden = th.tanh(self.first(observations))
        return checkpoint(self.second, hidden, use_reentrant=True)  # type: ignore[no-any-return]


def test_an_extractor_with_checkpoints_trains_as_in_stock() -> None:
    options: dict[str, Any] = {**SMALL, "policy_kwargs": {"features_extractor_class": Checkpointed}}
    models = updated(*on_one_rollout(*(kind("MlpPolicy", toy(), **options) for kind in (stable_baselines3.PPO, PPO))))
    assert models[1].engine_in_use.name == "hybrid"
    np.testing.assert_allclose(parameter_vector(models[1].policy), parameter_vector(models[0].policy), rtol=0, atol=1e-5)


class Steepens(BaseCallback):
    """Changes a number of an activation in the middle of a rollout, and compares the values of the next step."""

    def _on_step(self) -> bool:
        policy: Any = self.model.policy
        with th.no_grad():
            expected = policy.predict_values(self.locals["obs_tensor"])
        np.testing.assert_allclose(self.locals["values"], expected, rtol=1e-4, atol=1e-5)
        for module in policy.modules():
            if isinstance(module, nn.LeakyReLU):
                module.negative_slope = 0.1 * (self.n_calls % 10)
        return True


def test_a_number_of_an_activation_may_change_in_the_middle_of_a_rollout() -> None:
    callback = Steepens()
    PPO("MlpPolicy", toy(), policy_kwargs={"activation_fn": nn.LeakyReLU}, **SMALL).learn(128, callback)
    assert callback.n_calls == 32


# ------------------------------------------------------------------ bounds of the standard deviation


def test_T9_the_first_policy_is_within_the_bounds_so_that_trpo_moves() -> None:
    """A first step to the bound from outside would exceed any trust region: δ is 0.01, and KL(σ = 1 ‖ σ = e^-1) is 2.2."""
    model: Any = TRPO("MlpPolicy", toy(), log_std_bounds=(-5.0, -1.0), **SMALL)
    mean = model.policy.action_net.weight.detach().clone()
    collect(model)
    assert model.policy.log_std.max() == -1.0
    model.train()
    assert model.logger.name_to_value["train/is_line_search_success"] == 1
    assert not th.equal(model.policy.action_net.weight, mean)


class WithASpareModule(ActorCriticPolicy):
    """The loss does not depend on one module, so that the policy's own optimizer makes the steps."""

    def _build(self, lr_schedule: Any) -> None:
        self.spare = nn.Linear(2, 2)
        super()._build(lr_schedule)


class KeepsState(BaseCallback):
    """From before the first rollout, so that the parameters stay where they are and the engine computes with copies."""

    def _on_rollout_start(self) -> None:
        self.best = self.model.policy.state_dict()

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.RMSprop])
@pytest.mark.parametrize("bounds", [None, (-5.0, 2.0)])
def test_steps_of_the_policys_own_optimizer_stay_where_there_are_bounds(optimizer: Any, bounds: Any) -> None:
    model = PPO(
        WithASpareModule,
        toy(),
        engine="autograd",
        log_std_bounds=bounds,
        policy_kwargs={"optimizer_class": optimizer},
        **SMALL,
    )
    before = parameter_vector(model.policy)
    model.learn(128, KeepsState())
    assert (parameter_vector(model.policy) - before).abs().max() > 1e-3


class Delegating:
    """All that SB3's algorithms ask of an optimizer; it has no ``state``."""

    def __init__(self, inner: th.optim.Optimizer) -> None:
        self.inner, self.param_groups = inner, inner.param_groups

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def step(self) -> None:
        self.inner.step()

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


class CountingSGD(th.optim.SGD):
    """Keeps a number beside what it remembers of each parameter, as torch allows."""

    def step(self, closure: Any = None) -> Any:
        state: dict[Any, Any] = self.state
        state["n_steps"] = state.get("n_steps", 0) + 1
        return super().step(closure)


@pytest.mark.parametrize("make", [Delegating, lambda inner: CountingSGD(inner.param_groups[0]["params"], lr=1e-3)])
@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_an_optimizer_that_stock_takes_is_taken(make: Any, engine: str) -> None:
    stock = stable_baselines3.PPO("MlpPolicy", toy(), **SMALL)
    ours = PPO("MlpPolicy", toy(), engine=engine, **SMALL)
    on_one_rollout(ours, stock)
    for model in (ours, stock):
        model.policy.optimizer = make(model.policy.optimizer)
    before = parameter_vector(ours.policy)
    updated(ours, stock)
    assert not th.equal(parameter_vector(ours.policy), before)
    assert th.allclose(parameter_vector(ours.policy), parameter_vector(stock.policy), atol=2e-6)
