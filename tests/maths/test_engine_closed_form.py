"""
The closed-form engine's numbers against the autograd engine's in float64, which :mod:`test_engine_fisher` checks against
scores made one by one: g, F v, J and KL of TRPO, the gradient and terms of PPO, the critic's gradient.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from test_engine_fisher import BOX, VECTOR, DoubleFlatten

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.models.closed_form import ClosedFormEngine
from sb3_policyopt.models.model import Batch, Engine, PPOCoefficients
from sb3_policyopt.models.split import split_parameters
from sb3_policyopt.models.torch_policy import AutogradEngine

BATCH = 11
ACTIONS = {
    "box": BOX,
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(2),
}
NETWORKS = {
    "stacked": {"pi": [5, 4], "vf": [5, 4]},
    "uneven": {"pi": [5], "vf": [4, 3]},
    "linear": {"pi": [], "vf": []},
}
ACTIVATIONS = [th.nn.Tanh, th.nn.ReLU, th.nn.ELU, th.nn.SiLU]


class Objectives:
    """The hooks of both algorithms without an environment."""

    surrogate, value_loss = TRPO.surrogate, TRPO.value_loss

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy

    def loss(self, *arguments):
        return PPO.loss(self, *arguments)


class Pair:
    """One policy and one rollout in both engines."""

    def __init__(self, action: str, networks: str, activation: type[th.nn.Module]) -> None:
        th.manual_seed(0)
        options = {"net_arch": NETWORKS[networks], "activation_fn": activation, "ortho_init": False}
        single = ActorCriticPolicy(VECTOR, ACTIONS[action], lambda _: 1e-3, **options)
        with th.no_grad():
            for parameter in single.parameters():  # away from zero biases and equal standard deviations
                parameter += 0.2 * th.randn(parameter.shape)
        double = ActorCriticPolicy(
            VECTOR, ACTIONS[action], lambda _: 1e-3, features_extractor_class=DoubleFlatten, **options
        ).double()
        double.load_state_dict(single.state_dict())
        observations = th.rand(BATCH, 3) * 2 - 1
        self.closed = ClosedFormEngine(single)
        self.exact = AutogradEngine(double, Objectives(double), split_parameters(double, observations))

        with th.no_grad():
            distribution = double.get_distribution(observations)
            actions = distribution.sample()
            # Not the policy's own: ratios on both sides of the clip.
            old_log_prob = distribution.log_prob(actions) + 0.4 * th.randn(BATCH).double()
        values, advantages, returns = th.randn(3, BATCH).double()
        scalars = (values, old_log_prob, advantages, returns)
        self.exact_batch = Batch(observations, actions, *scalars)
        self.batch = Batch(
            self.closed.features(observations.numpy()),
            actions.reshape(BATCH, -1).numpy().astype(ACTIONS[action].dtype),
            *(scalar.numpy().astype(np.float32) for scalar in scalars),
        )


def by_name(engine: Engine, vector: th.Tensor) -> dict[str, th.Tensor]:
    """A flat vector cut into parameters (the engines order them differently)."""
    names = {id(parameter): name for name, parameter in engine.policy.named_parameters()}
    offsets = engine.flat.offsets
    return {
        names[id(parameter)]: vector[start:stop]
        for parameter, start, stop in zip(engine.flat.parameters, offsets, offsets[1:], strict=False)
        if start < len(vector)
    }


def assert_same(pair: Any, found: th.Tensor, exact: th.Tensor) -> None:
    found_pieces, pieces = by_name(pair.closed, found), by_name(pair.exact, exact)
    assert set(found_pieces) == set(pieces)
    scale = exact.abs().max().item()
    assert scale > 1e-3
    for name, piece in pieces.items():
        np.testing.assert_allclose(found_pieces[name], piece, rtol=0, atol=3e-6 * scale, err_msg=name)


def assert_same_ppo_gradient(pair: Any, coefficients: PPOCoefficients) -> None:
    with pair.closed.updating(BATCH), pair.exact.updating(BATCH):
        for _ in range(2):  # the second time over the gradient of the first
            closed = pair.closed.ppo_gradient(pair.batch, coefficients)
            exact = pair.exact.ppo_gradient(pair.exact_batch, coefficients)
            assert_same(pair, pair.closed.flat.gradient, pair.exact.flat.gradient)
    assert 0 < exact["clip_fraction"] < 1
    assert {name: float(value) for name, value in closed.items()} == pytest.approx(
        {name: float(value) for name, value in exact.items()}, rel=1e-4, abs=1e-5
    )


@pytest.fixture(params=ACTIVATIONS, ids=lambda activation: activation.__name__)
def activation(request):
    return request.param


@pytest.fixture(params=ACTIONS)
def action(request):
    return request.param


@pytest.fixture(params=NETWORKS)
def pair(request, action, activation):
    return Pair(action, request.param, activation)


def test_T3_T5_gradient_and_fisher_vector_products(pair):
    for thinning in (1, 3):
        closed, exact = pair.closed.expansion(pair.batch, thinning), pair.exact.expansion(pair.exact_batch, thinning)
        assert closed.surrogate == pytest.approx(exact.surrogate, rel=1e-5, abs=1e-6)
        assert_same(pair, closed.gradient, exact.gradient)
        along = {name: th.randn(len(piece)).double() for name, piece in by_name(pair.exact, exact.gradient).items()}
        along_closed = th.cat([along[name] for name in by_name(pair.closed, closed.gradient)]).float()
        along_exact = th.cat([along[name] for name in by_name(pair.exact, exact.gradient)])
        for _ in range(2):  # the products do not wear the operator out
            assert_same(pair, closed.fisher(along_closed), exact.fisher(along_exact))


def test_T2_surrogate_and_kl_of_a_moved_policy(pair):
    olds = [engine.expansion(batch).old for engine, batch in ((pair.closed, pair.batch), (pair.exact, pair.exact_batch))]
    step = {name: 0.1 * th.randn(len(piece)) for name, piece in by_name(pair.exact, pair.exact.actor_parameters).items()}
    with th.no_grad():
        for engine in (pair.closed, pair.exact):
            for name, piece in by_name(engine, engine.actor_parameters).items():
                piece += step[name]
    exact = pair.exact.surrogate_and_kl(pair.exact_batch, olds[1])
    assert exact[1] > 1e-3
    assert pair.closed.surrogate_and_kl(pair.batch, olds[0]) == pytest.approx(exact, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
@pytest.mark.parametrize(("clip_range_vf", "value_clipping"), [(None, "clipped"), (0.5, "clipped"), (0.5, "pessimistic")])
def test_P5_gradient_and_terms(pair, ent_coef, clip_range_vf, value_clipping):
    assert_same_ppo_gradient(pair, PPOCoefficients(0.2, clip_range_vf, value_clipping, ent_coef, 0.7))


def test_T10_gradient_of_the_critic(pair):
    with pair.closed.updating(BATCH, critic_only=True), pair.exact.updating(BATCH, critic_only=True):
        closed, exact = pair.closed.value_gradient(pair.batch), pair.exact.value_gradient(pair.exact_batch)
        n = pair.closed.n_actor
        gradients = [engine.flat.gradient.clone() for engine in (pair.closed, pair.exact)]
    for gradient in gradients:
        gradient[:n] = 0
    assert_same(pair, *gradients)
    assert float(closed["value_loss"]) == pytest.approx(float(exact["value_loss"]), rel=1e-5)
