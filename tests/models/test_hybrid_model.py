"""
The hybrid's numbers against autograd's in float64: the gradient and terms of PPO, the critic's gradient,
through extractors that both networks share, of which each has its own, and that have nothing to learn.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from pairs import BATCH, assert_same, assert_same_ppo_gradient, critic_objective
from policies import ACTIONS, DICTIONARY, IMAGE, NETWORKS
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor

from sb3_policyopt.distributions import family_of
from sb3_policyopt.maths.losses import ValueClipping
from sb3_policyopt.maths.terms import value_of
from sb3_policyopt.models.hybrid import HybridModel
from sb3_policyopt.models.split import split_parameters
from sb3_policyopt.models.torch_policy import TorchModel
from sb3_policyopt.objectives import PPOCoefficients
from sb3_policyopt.rollout.batch import Batch


class Convolution(BaseFeaturesExtractor):
    """SB3 casts images to float32; here they take the type of the weights."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=3)
        self.layers = th.nn.Sequential(th.nn.Conv2d(1, 2, 3, stride=2), th.nn.Tanh(), th.nn.Flatten(), th.nn.Linear(18, 3))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return th.tanh(self.layers(observations.to(next(self.layers.parameters()).dtype)))


class Combined(CombinedExtractor):
    """No parameters, and the type of a buffer."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space)
        self.one: th.Tensor
        self.register_buffer("one", th.ones(()))

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        return super().forward(observations).to(self.one.dtype)


class Pair:
    """One policy and one rollout in both models."""

    def __init__(self, action: str, networks: str, extractor: str, frozen: bool = False) -> None:
        th.manual_seed(0)
        policy_class: type[ActorCriticPolicy] = ActorCriticPolicy
        space: spaces.Space[Any] = IMAGE
        options: dict[str, Any] = {
            "net_arch": NETWORKS[networks],
            "ortho_init": False,
            "features_extractor_class": Convolution,
        }
        options["share_features_extractor"] = extractor != "separate"
        if extractor == "nothing to learn":
            policy_class, space, options["features_extractor_class"] = MultiInputActorCriticPolicy, DICTIONARY, Combined
        single, double = (policy_class(space, ACTIONS[action], lambda _: 1e-3, **options) for _ in range(2))
        with th.no_grad():
            for parameter in single.parameters():  # away from zero biases and equal standard deviations
                parameter.add_(0.2 * th.randn(parameter.shape))
        double.load_state_dict(single.state_dict())
        double.double()
        for policy in (single, double):
            policy.features_extractor.requires_grad_(not frozen)
        family = family_of(single)
        assert family is not None
        self.closed = HybridModel(single, family)

        space.seed(0)
        samples = [space.sample() for _ in range(BATCH)]
        if isinstance(space, spaces.Dict):
            observations: Any = {key: th.as_tensor(np.stack([sample[key] for sample in samples])) for key in space.spaces}
        else:
            observations = th.as_tensor(np.stack(samples))
        self.exact = TorchModel(double, split_parameters(double, observations))
        with th.no_grad():
            distribution = double.get_distribution(observations)
            actions = distribution.sample()
            # Not the policy's own: ratios on both sides of the clip.
            old_log_prob = distribution.log_prob(actions) + th.linspace(-0.6, 0.6, BATCH).double()
        values, advantages, returns = th.randn(3, BATCH).double()
        scalars = (values, old_log_prob, advantages, returns)
        self.exact_batch = Batch(observations, actions, *scalars)
        if actions.is_floating_point():
            actions = actions.float()
        self.batch = Batch(observations, actions, values.float(), old_log_prob.float(), advantages.float(), returns.float())


@pytest.fixture(params=ACTIONS)
def action(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=NETWORKS)
def networks(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["shared", "separate", "nothing to learn"])
def pair(request: pytest.FixtureRequest, action: str, networks: str) -> Pair:
    return Pair(action, networks, request.param)


@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
@pytest.mark.parametrize(("clip_range_vf", "value_clipping"), [(None, "clipped"), (0.5, "pessimistic")])
def test_P5_gradient_and_terms(
    pair: Pair, ent_coef: float, clip_range_vf: float | None, value_clipping: ValueClipping
) -> None:
    assert_same_ppo_gradient(pair, PPOCoefficients(0.2, clip_range_vf, value_clipping, ent_coef, 0.7))


@pytest.mark.parametrize("extractor", ["shared", "separate"])
def test_P5_gradient_below_which_the_extractor_is_frozen(action: str, networks: str, extractor: str) -> None:
    assert_same_ppo_gradient(Pair(action, networks, extractor, frozen=True), PPOCoefficients(0.2, None, "clipped", 0.3, 0.7))


def test_T10_gradient_of_the_critic(pair: Pair) -> None:
    with pair.closed.updating(BATCH, critic_only=True), pair.exact.updating(BATCH, critic_only=True):
        for _ in range(2):
            closed = pair.closed.gradient(critic_objective(pair.closed.policy), pair.batch)
            exact = pair.exact.gradient(critic_objective(pair.exact.policy), pair.exact_batch)
        n = pair.closed.n_actor
        assert n == pair.exact.n_actor
        gradients = [model.flat.gradient.clone() for model in (pair.closed, pair.exact)]
    for gradient in gradients:
        gradient[:n] = 0
    assert_same(pair, *gradients)
    assert float(value_of(closed["value_loss"])) == pytest.approx(float(value_of(exact["value_loss"])), rel=1e-5)


def test_the_actor_comes_first_and_its_log_std_last(pair: Pair) -> None:
    """What the networks rely on, and what T1-T5 step along."""
    names = {id(parameter): name for name, parameter in pair.closed.policy.named_parameters()}
    order = [names[id(parameter)] for parameter in pair.closed.flat.parameters]
    n = pair.closed.flat.offsets.index(pair.closed.n_actor)
    critic = ("vf_features_extractor", "mlp_extractor.value_net", "value_net")
    assert not any(name.startswith(critic) for name in order[:n]) and all(name.startswith(critic) for name in order[n:])
    gaussian = pair.closed.networks.family.free == ("log_std",)
    assert ("log_std" in order) == gaussian
    if gaussian:
        assert order[n - 1] == "log_std"
