"""One policy in two models: the objectives of both algorithms without an environment, and comparisons."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt import PPO, TRPO
from sb3_policyopt.maths.terms import value_of
from sb3_policyopt.models import AnyModel
from sb3_policyopt.objectives import LocalTrustRegion, Objective, PPOCoefficients
from sb3_policyopt.rollout.batch import Batch

BATCH = 11


class Hooks:
    """The hooks of both algorithms without an environment."""

    loss: Any = PPO.loss  # Any: the hooks are methods of the algorithms, and this is none
    surrogate: Any = TRPO.surrogate
    value_loss: Any = TRPO.value_loss

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy


def ppo_objective(policy: ActorCriticPolicy, coefficients: PPOCoefficients) -> Objective:
    return Objective.of(Hooks(policy).loss, coefficients)


def critic_objective(policy: ActorCriticPolicy) -> Objective:
    return Objective.of(Hooks(policy).value_loss, critic_only=True, name="value_loss")


def region_of(model: AnyModel, batch: Batch[Any], thinning: int = 1) -> LocalTrustRegion[Any]:
    return LocalTrustRegion(model, batch, Hooks(model.policy).surrogate, thinning)


def by_name(model: AnyModel, vector: th.Tensor) -> dict[str, th.Tensor]:
    """A flat vector cut into parameters (the models order them differently)."""
    names = {id(parameter): name for name, parameter in model.policy.named_parameters()}
    offsets = model.flat.offsets
    return {
        names[id(parameter)]: vector[start:stop]
        for parameter, start, stop in zip(model.flat.parameters, offsets, offsets[1:], strict=False)
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
            closed = pair.closed.gradient(ppo_objective(pair.closed.policy, coefficients), pair.batch)
            exact = pair.exact.gradient(ppo_objective(pair.exact.policy, coefficients), pair.exact_batch)
            assert_same(pair, pair.closed.flat.gradient, pair.exact.flat.gradient)
    assert 0 < exact["clip_fraction"] < 1
    assert {name: float(value_of(term)) for name, term in closed.items()} == pytest.approx(
        {name: float(value_of(term)) for name, term in exact.items()}, rel=1e-4, abs=1e-5
    )
