"""
The closed form's numbers against autograd's in float64, which :mod:`test_fisher_products` checks against
scores made one by one: g, F v, J and KL of TRPO, the gradient and terms of PPO, the critic's gradient.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from pairs import BATCH, assert_same, assert_same_ppo_gradient, by_name, critic_objective, region_of
from policies import ACTIONS, NETWORKS, VECTOR, DoubleFlatten
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt.distributions import family_of
from sb3_policyopt.maths.losses import ValueClipping
from sb3_policyopt.maths.terms import value_of
from sb3_policyopt.models.closed_form import ClosedFormModel
from sb3_policyopt.models.split import split_parameters
from sb3_policyopt.models.torch_policy import TorchModel
from sb3_policyopt.objectives import PPOCoefficients
from sb3_policyopt.rollout.batch import Batch, in_torch

ACTIVATIONS = [th.nn.Tanh, th.nn.ReLU, th.nn.ELU, th.nn.SiLU]


def in_numpy(column: th.Tensor) -> np.ndarray:
    return column.numpy().astype(np.float32)


class Pair:
    """One policy and one rollout in both models."""

    def __init__(self, action: str, networks: str, activation: type[th.nn.Module], library: str) -> None:
        th.manual_seed(0)
        options: dict[str, Any] = {"net_arch": NETWORKS[networks], "activation_fn": activation, "ortho_init": False}
        single = ActorCriticPolicy(VECTOR, ACTIONS[action], lambda _: 1e-3, **options)
        with th.no_grad():
            for parameter in single.parameters():  # away from zero biases and equal standard deviations
                parameter.add_(0.2 * th.randn(parameter.shape))
        double = ActorCriticPolicy(
            VECTOR, ACTIONS[action], lambda _: 1e-3, features_extractor_class=DoubleFlatten, **options
        ).double()
        double.load_state_dict(single.state_dict())
        observations = th.rand(BATCH, 3) * 2 - 1
        family = family_of(single)
        assert family is not None
        self.closed = ClosedFormModel(single, family)
        self.exact = TorchModel(double, split_parameters(double, observations))

        with th.no_grad():
            distribution = double.get_distribution(observations)
            actions = distribution.sample()
            # Not the policy's own: ratios on both sides of the clip.
            old_log_prob = distribution.log_prob(actions) + 0.4 * th.randn(BATCH).double()
        values, advantages, returns = th.randn(3, BATCH).double()
        scalars = (values, old_log_prob, advantages, returns)
        self.exact_batch = Batch(observations, actions, *scalars)
        self.batch: Any = Batch(
            self.closed.features(observations.numpy()),
            actions.reshape(BATCH, -1).numpy().astype(ACTIONS[action].dtype),
            in_numpy(values),
            in_numpy(old_log_prob),
            in_numpy(advantages),
            in_numpy(returns),
        )
        if library == "torch":
            self.batch = in_torch(self.batch)


@pytest.fixture(params=ACTIVATIONS, ids=lambda activation: activation.__name__)
def activation(request: pytest.FixtureRequest) -> type[th.nn.Module]:
    return request.param


@pytest.fixture(params=ACTIONS)
def action(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["numpy", "torch"])
def library(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=NETWORKS)
def pair(request: pytest.FixtureRequest, action: str, activation: type[Any], library: str) -> Pair:
    return Pair(action, request.param, activation, library)


def test_T3_T5_gradient_and_fisher_vector_products(pair: Pair) -> None:
    for thinning in (1, 3):
        closed, exact = region_of(pair.closed, pair.batch, thinning), region_of(pair.exact, pair.exact_batch, thinning)
        assert closed.surrogate == pytest.approx(exact.surrogate, rel=1e-5, abs=1e-6)
        assert_same(pair, closed.gradient, exact.gradient)
        along = {name: th.randn(len(piece)).double() for name, piece in by_name(pair.exact, exact.gradient).items()}
        along_closed = th.cat([along[name] for name in by_name(pair.closed, closed.gradient)]).float()
        along_exact = th.cat([along[name] for name in by_name(pair.exact, exact.gradient)])
        for _ in range(2):  # a product leaves the operator as it was
            assert_same(pair, closed.fisher(along_closed), exact.fisher(along_exact))


@pytest.mark.fast
def test_J_and_its_transpose_are_adjoint(pair: Pair) -> None:
    """uᵀ(J v) = vᵀ(Jᵀ u) for any u and v."""
    both: list[tuple[Any, Any, float]] = [(pair.closed, pair.batch, 1e-4), (pair.exact, pair.exact_batch, 1e-10)]
    for model, batch, tolerance in both:
        forward = model.actor_pass(batch)
        v = th.randn(model.n_actor).to(model.actor_parameters.dtype)
        moved = [th.as_tensor(part) for part in forward.pushforward(v)]
        shapes = [(BATCH, part.shape[-1]) if part.dim() > 1 else part.shape for part in moved]
        slopes = [th.randn(shape).to(v.dtype) for shape in shapes]
        in_numpy = isinstance(batch.returns, np.ndarray)
        as_arrays: Any = tuple(part.numpy() for part in slopes) if in_numpy else tuple(slopes)
        left = th.stack([(u * part).sum() for u, part in zip(slopes, moved, strict=True)]).sum().item()
        assert left == pytest.approx((v @ forward.pullback(as_arrays)).item(), rel=tolerance, abs=tolerance)


def test_T2_surrogate_and_kl_of_a_moved_policy(pair: Pair) -> None:
    regions = [region_of(pair.closed, pair.batch), region_of(pair.exact, pair.exact_batch)]
    step = {name: 0.1 * th.randn(len(piece)) for name, piece in by_name(pair.exact, pair.exact.actor_parameters).items()}
    with th.no_grad():
        for model in (pair.closed, pair.exact):
            for name, piece in by_name(model, model.actor_parameters).items():
                piece += step[name]
    exact = regions[1].evaluate()
    assert exact[1] > 1e-3
    assert regions[0].evaluate() == pytest.approx(exact, rel=1e-4, abs=1e-6)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
@pytest.mark.parametrize(("clip_range_vf", "value_clipping"), [(None, "clipped"), (0.5, "clipped"), (0.5, "pessimistic")])
def test_P5_gradient_and_terms(
    pair: Pair, ent_coef: float, clip_range_vf: float | None, value_clipping: ValueClipping
) -> None:
    assert_same_ppo_gradient(pair, PPOCoefficients(0.2, clip_range_vf, value_clipping, ent_coef, 0.7))


def test_T10_gradient_of_the_critic(pair: Pair) -> None:
    with pair.closed.updating(BATCH, critic_only=True), pair.exact.updating(BATCH, critic_only=True):
        closed = pair.closed.gradient(critic_objective(pair.closed.policy), pair.batch)
        exact = pair.exact.gradient(critic_objective(pair.exact.policy), pair.exact_batch)
        n = pair.closed.n_actor
        gradients = [model.flat.gradient.clone() for model in (pair.closed, pair.exact)]
    for gradient in gradients:
        gradient[:n] = 0
    assert_same(pair, *gradients)
    assert float(value_of(closed["value_loss"])) == pytest.approx(float(value_of(exact["value_loss"])), rel=1e-5)
