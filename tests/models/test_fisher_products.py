"""
T1-T5 on SB3's real policies: the model's J, g and F v against scores made one sample and one action at a time.

The reference knows nothing of KL divergences or Hessians: F = E_s E_a[s sᵀ] with s = ∇ ln π from SB3's own ``log_prob``,
the expectation over actions exact (see distribution_cases), everything in float64.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from distribution_cases import gaussian_nodes
from gymnasium import spaces
from pairs import region_of
from policies import CASES, PolicyCase
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt.models.split import split_parameters
from sb3_policyopt.models.torch_policy import TorchModel
from sb3_policyopt.rollout.batch import Batch

BATCH = 7

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def actor_of(model: TorchModel) -> list[th.Tensor]:
    return list(model.flat.parameters[: model.actor_count])


def observations_of(space: spaces.Space[Any]) -> Any:
    space.seed(0)
    samples = [space.sample() for _ in range(BATCH)]
    if isinstance(space, spaces.Dict):
        return {key: th.as_tensor(np.stack([sample[key] for sample in samples])) for key in space.spaces}
    return th.as_tensor(np.stack(samples))


def rollout_of(policy: ActorCriticPolicy, case: PolicyCase) -> Batch[th.Tensor]:
    observations = observations_of(case.observation_space)
    with th.no_grad():
        distribution = policy.get_distribution(observations)
        actions = distribution.sample()
        old_log_prob = distribution.log_prob(actions)
    advantages = th.randn(BATCH, generator=th.Generator().manual_seed(1), dtype=th.float64)
    zeros = th.zeros(BATCH, dtype=th.float64)
    return Batch(observations, actions, zeros, old_log_prob, advantages, zeros)


def action_nodes(policy: ActorCriticPolicy, observations: Any) -> list[tuple[th.Tensor, th.Tensor]]:
    """Actions and weights with Σ w f(a) = E_{a∼π(·|s)}[f(a)] for every state."""
    space: Any = policy.action_space
    with th.no_grad():
        distribution = policy.get_distribution(observations)
        if isinstance(space, spaces.Box):
            normal: Any = distribution.distribution
            nodes = gaussian_nodes(normal.mean, normal.stddev)
            return [(th.tanh(a), w) for a, w in nodes] if policy.squash_output else nodes
        sizes_of: dict[type[Any], Callable[[], list[int]]] = {
            spaces.Discrete: lambda: [space.n],
            spaces.MultiDiscrete: lambda: list(space.nvec),
            spaces.MultiBinary: lambda: [2] * space.n,
        }
        sizes = sizes_of[type(space)]()
        nodes = []
        for combination in itertools.product(*map(range, sizes)):
            action = th.tensor(combination).expand(BATCH, -1)
            action = action[:, 0] if isinstance(space, spaces.Discrete) else action
            action = action.double() if isinstance(space, spaces.MultiBinary) else action
            nodes.append((action, distribution.log_prob(action).exp()))
        return nodes


def per_sample_scores(policy: ActorCriticPolicy, actor: list[th.Tensor], observations: Any, actions: th.Tensor) -> th.Tensor:
    """∇ ln π(a|s) of every sample by a backward pass of its own, shape (batch, n_actor)."""
    log_prob = policy.get_distribution(observations).log_prob(actions)
    rows = []
    for i in range(BATCH):
        gradients = th.autograd.grad(log_prob[i], actor, retain_graph=True, materialize_grads=True)
        rows.append(th.cat([gradient.flatten() for gradient in gradients]))
    return th.stack(rows)


def per_state_fisher(policy: ActorCriticPolicy, actor: list[th.Tensor], observations: Any) -> th.Tensor:
    """E_a[s sᵀ] of every state, shape (batch, n_actor, n_actor)."""
    total: Any = 0.0
    for actions, weights in action_nodes(policy, observations):
        scores = per_sample_scores(policy, actor, observations, actions)
        total = total + weights[:, None, None] * scores[:, :, None] * scores[:, None, :]
    return total


def dense(fisher: Any, n: int) -> th.Tensor:
    return th.stack([fisher(column) for column in th.eye(n, dtype=th.float64)], dim=1)


@cases
def test_T5_fisher_vector_products_are_those_of_the_covariance_of_the_score(case: PolicyCase) -> None:
    policy = case.policy()
    rollout = rollout_of(policy, case)
    model = TorchModel(policy, split_parameters(policy, rollout.observations))
    states = per_state_fisher(policy, actor_of(model), rollout.observations)
    reference = states.mean(0)
    scale = reference.abs().max().item()
    assert scale > 1e-3
    rng_state = th.get_rng_state()

    whole = region_of(model, rollout)
    found = dense(whole.fisher, model.n_actor)
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-12 * scale)
    assert th.linalg.eigvalsh(found).min() >= -1e-12 * scale

    vector = th.linspace(-1, 1, model.n_actor, dtype=th.float64)
    thinned = region_of(model, rollout, thinning=3)  # states 0, 3, 6 for F, and all of them for J and g
    np.testing.assert_allclose(thinned.fisher(vector), states[::3].mean(0) @ vector, rtol=0, atol=1e-11 * scale)
    assert th.equal(thinned.gradient, whole.gradient) and thinned.surrogate == whole.surrogate

    for size in (1, 3, BATCH, 100):  # 3 leaves a remainder of one state
        pieces = region_of(TorchModel(policy, split_parameters(policy, rollout.observations), micro_batch_size=size), rollout)
        for _ in range(2):  # a product leaves the operator as it was
            np.testing.assert_allclose(pieces.fisher(vector), reference @ vector, rtol=0, atol=1e-11 * scale)
    assert th.equal(th.get_rng_state(), rng_state)


@cases
def test_T3_S1_surrogate_and_its_gradient_are_the_policy_gradient(case: PolicyCase) -> None:
    policy = case.policy()
    rollout = rollout_of(policy, case)
    for size in (None, 3):
        model = TorchModel(policy, split_parameters(policy, rollout.observations), micro_batch_size=size)
        scores = per_sample_scores(policy, actor_of(model), rollout.observations, rollout.actions)
        region = region_of(model, rollout)
        # r = 1 at θ_old, so that J = E[A] and g = E[A ∇ ln π].
        assert region.surrogate == pytest.approx(rollout.advantages.mean().item(), rel=1e-12)
        reference = (rollout.advantages[:, None] * scores).mean(0)
        np.testing.assert_allclose(region.gradient, reference, rtol=0, atol=1e-12)


@cases
def test_T2_kl_is_the_joint_one_of_old_and_new_in_this_order(case: PolicyCase) -> None:
    policy = case.policy()
    rollout = rollout_of(policy, case)
    model = TorchModel(policy, split_parameters(policy, rollout.observations))
    whole = region_of(model, rollout)
    pieces = TorchModel(policy, split_parameters(policy, rollout.observations), micro_batch_size=3)
    in_pieces = region_of(pieces, rollout)
    nodes = action_nodes(policy, rollout.observations)
    with th.no_grad():
        before = [policy.get_distribution(rollout.observations).log_prob(actions) for actions, _ in nodes]
        pieces.actor_parameters.add_(0.3 * th.randn(pieces.n_actor, generator=th.Generator().manual_seed(2)).double())
        pieces.flat.push()  # the graphs of the regions hold the parameters' memory
        distribution = policy.get_distribution(rollout.observations)
        # S2 by its definition: E over the old policy's actions of ln π_old − ln π. The squashing cancels in the difference.
        kl = sum(
            (weights * (old - distribution.log_prob(actions))).mean().item()
            for (actions, weights), old in zip(nodes, before, strict=True)
        )
        ratio = th.exp(distribution.log_prob(rollout.actions) - rollout.old_log_prob)
        surrogate = (ratio * rollout.advantages).mean().item()
    assert kl > 1e-3
    for region in (whole, in_pieces):
        found_surrogate, found_kl = region.evaluate()
        assert found_kl == pytest.approx(kl, rel=1e-10)
        assert found_surrogate == pytest.approx(surrogate, rel=1e-10)


@cases
def test_the_graph_tells_actor_and_critic_apart(case: PolicyCase) -> None:
    """A parameter is the actor's exactly if some score depends on it; the critic's are the rest that move the value."""
    policy = case.policy()
    observations = observations_of(case.observation_space)
    model = TorchModel(policy, split_parameters(policy, observations))
    everything: list[th.Tensor] = list(policy.parameters())
    fisher = per_state_fisher(policy, everything, observations).mean(0)
    used = th.split(fisher.diagonal() > 0, [parameter.numel() for parameter in everything])
    in_actor = {id(parameter) for parameter in actor_of(model)}
    in_critic = {id(parameter) for parameter in model.flat.parameters[model.actor_count :]}
    assert in_actor == {id(parameter) for parameter, mask in zip(everything, used, strict=True) if mask.any()}
    assert in_critic == {id(parameter) for parameter in everything} - in_actor
