"""S2, T4, P3: the action distributions against their definitions, torch's distributions and SB3's."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from distribution_cases import CASES, Case, as_tensors, expectation, torch_parts
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_policyopt.distributions import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical, family_of
from sb3_policyopt.distributions.categorical import log_softmax

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def arrays_equal(ours: Any, reference: Any, **tolerance: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(reference), **(tolerance or EXACT))


@cases
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 5))
def test_log_prob_is_that_of_sb3_and_integrates_to_one(case: Case, seed: int, scale: float) -> None:
    parameters = as_tensors(case.parameters(seed, scale=scale))
    for actions, _ in case.actions_and_weights(parameters):
        arrays_equal(case.family.log_prob(parameters, actions), case.sb3(parameters).log_prob(case.sb3_actions(actions)))
    if not case.is_gaussian:
        nodes = case.actions_and_weights(parameters)
        arrays_equal(sum(th.exp(case.family.log_prob(parameters, actions)) for actions, _ in nodes), np.ones(5))


@cases
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 5))
def test_P3_entropy_is_minus_the_mean_of_the_log_probability(case: Case, seed: int, scale: float) -> None:
    parameters = as_tensors(case.parameters(seed, scale=scale))
    entropy = case.family.entropy(parameters)
    arrays_equal(entropy, -expectation(case, parameters, lambda a: case.family.log_prob(parameters, a)))
    arrays_equal(entropy, case.sb3(parameters).entropy())


@cases
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 5))
def test_S2_kl_is_the_mean_log_ratio_under_the_old_distribution(case: Case, seed: int, scale: float) -> None:
    old, new = (as_tensors(case.parameters(seed + k, scale=scale)) for k in (0, 1))
    kl = case.family.kl(old, new)
    arrays_equal(kl, expectation(case, old, lambda a: case.family.log_prob(old, a) - case.family.log_prob(new, a)))
    parts = [
        th.distributions.kl_divergence(p, q).reshape(5, -1).sum(1)
        for p, q in zip(torch_parts(case.sb3(old)), torch_parts(case.sb3(new)), strict=True)
    ]
    arrays_equal(kl, sum(parts))


@cases
@given(seed=st.integers(0, 2**31), distance=st.floats(1e-3, 3))
def test_S2_kl_is_positive_and_zero_only_between_equals(case: Case, seed: int, distance: float) -> None:
    old = case.parameters(seed)
    # Move the first parameter of every state: no symmetry of the softmax undoes the change of a single logit.
    moved = old[0].copy()
    moved[:, 0] += distance
    assert (case.family.kl(old, (moved, *old[1:])) > 0).all()
    arrays_equal(case.family.kl(old, old), np.zeros(5), atol=1e-15)


@cases
def test_S2_kl_is_not_symmetric_and_takes_the_old_distribution_first(case: Case) -> None:
    old, new = case.parameters(0, scale=2.0), case.parameters(1, scale=2.0)
    forward, backward = case.family.kl(old, new), case.family.kl(new, old)
    assert (np.abs(forward - backward) > 1e-3).all()


def test_S2_kl_of_a_joint_action_is_the_sum_over_its_dimensions() -> None:
    # n copies of one independent dimension have n times its KL, not its KL.
    one_old, one_new = np.array([[0.3]]), np.array([[-0.4]])
    for n in (2, 6, 17):
        old, new = (np.repeat(x, n, axis=1) for x in (one_old, one_new))
        spread = (np.full(n, 0.1), np.full(n, -0.2))
        single = DiagonalGaussian(1).kl((one_old, spread[0][:1]), (one_new, spread[1][:1]))
        arrays_equal(DiagonalGaussian(n).kl((old, spread[0]), (new, spread[1])), n * single)
        arrays_equal(Bernoulli(n).kl((old,), (new,)), n * Bernoulli(1).kl((one_old,), (one_new,)))
        pair_old, pair_new = (np.tile([x.item(), 0.0], (1, n)) for x in (one_old, one_new))
        single = Categorical(2).kl((pair_old[:, :2],), (pair_new[:, :2],))
        arrays_equal(MultiCategorical((2,) * n).kl((pair_old,), (pair_new,)), n * single)


@cases
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 5))
def test_T4_the_score_is_the_gradient_of_the_log_probability_and_has_mean_zero(case: Case, seed: int, scale: float) -> None:
    parameters = as_tensors(case.parameters(seed, scale=scale), requires_grad=True)
    for actions, _ in case.actions_and_weights(parameters):
        log_prob, score = case.family.log_prob_and_score(parameters, actions)
        arrays_equal(log_prob.detach(), case.family.log_prob(parameters, actions).detach())
        # The gradient of a sum over samples, with respect to a state-independent parameter, is the sum of their scores.
        for ours, parameter, reference in zip(
            score, parameters, th.autograd.grad(case.family.log_prob(parameters, actions).sum(), parameters), strict=True
        ):
            arrays_equal(ours.detach() if parameter.dim() == 2 else ours.detach().sum(0), reference)

    def score_of(i: int, actions: th.Tensor) -> th.Tensor:
        return case.family.log_prob_and_score(parameters, actions)[1][i].detach()

    for i in range(len(parameters)):
        mean = expectation(case, parameters, partial(score_of, i))
        arrays_equal(mean, np.zeros_like(mean), atol=1e-10)


@cases
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 5))
def test_P3_gradient_of_the_entropy(case: Case, seed: int, scale: float) -> None:
    parameters = as_tensors(case.parameters(seed, scale=scale), requires_grad=True)
    gradient = case.family.entropy_gradient(parameters)
    reference = th.autograd.grad(case.family.entropy(parameters).sum(), parameters, materialize_grads=True)
    for i, (ours, parameter) in enumerate(zip(gradient, parameters, strict=True)):
        rows = ours.detach().expand(5, -1)
        arrays_equal(rows if parameter.dim() == 2 else rows.sum(0), reference[i].detach())

        def integrand(actions: th.Tensor, i: int = i) -> th.Tensor:
            log_prob, score = case.family.log_prob_and_score(parameters, actions)
            return -((1 + log_prob)[:, None] * score[i]).detach()

        arrays_equal(rows, expectation(case, parameters, integrand), rtol=1e-9, atol=1e-10)


@cases
@given(seed=st.integers(0, 2**31))
def test_T5_metric_of_the_parameters_is_the_covariance_of_the_score(case: Case, seed: int) -> None:
    parameters = as_tensors(case.parameters(seed))
    tangent = tuple(th.tensor(np.random.default_rng(seed).standard_normal((5, p.shape[-1]))) for p in parameters)

    def score_times_its_component(actions: th.Tensor) -> th.Tensor:
        score = th.cat(case.family.log_prob_and_score(parameters, actions)[1], 1)
        return score * (score * th.cat(tangent, 1)).sum(1)[:, None]

    metric = th.cat(case.family.fisher_metric(parameters, tangent), 1)
    arrays_equal(metric, expectation(case, parameters, score_times_its_component))


@cases
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 5))
def test_the_evaluation_of_a_minibatch_is_made_of_its_parts(case: Case, seed: int, scale: float) -> None:
    parameters = as_tensors(case.parameters(seed, scale=scale))
    actions = case.actions_and_weights(parameters)[-1][0]
    together = case.family.evaluate(parameters, actions, entropy_gradient=True)
    log_prob, score = case.family.log_prob_and_score(parameters, actions)
    for ours, part in zip(
        (together.log_prob, together.mean_entropy, *together.score, *together.entropy_gradient),
        (log_prob, case.family.entropy(parameters).mean(), *score, *case.family.entropy_gradient(parameters)),
        strict=True,
    ):
        arrays_equal(ours, part)
    assert case.family.evaluate(parameters, actions, entropy_gradient=False).entropy_gradient == ()


@cases
def test_numpy_and_torch_give_the_same_numbers(case: Case) -> None:
    for dtype, tolerance in ((np.float64, 1e-14), (np.float32, 2e-6)):
        old, new = (tuple(p.astype(dtype) for p in case.parameters(seed, scale=2.0)) for seed in (0, 1))
        pairs = (old, as_tensors(old)), (new, as_tensors(new))
        actions = case.actions_and_weights(as_tensors(old))[1][0]
        (old, old_torch), (new, new_torch) = pairs
        family = case.family
        results = {
            "log_prob": (family.log_prob(old, actions.numpy()), family.log_prob(old_torch, actions)),
            "entropy": (family.entropy(old), family.entropy(old_torch)),
            "kl": (family.kl(old, new), family.kl(old_torch, new_torch)),
        }
        alike: list[tuple[Any, Any]] = [(old, actions.numpy()), (old_torch, actions)]
        scores = (family.log_prob_and_score(x, a)[1] for x, a in alike)
        gradients = (family.entropy_gradient(x) for x, _ in alike)
        tangents = (tuple(p + 0 * x[0] for p in x) for x, _ in alike)
        metrics = (family.fisher_metric(x, t) for (x, _), t in zip(alike, tangents, strict=True))
        for name, arrays in {"score": scores, "entropy_gradient": gradients, "metric": metrics}.items():
            for i, pair in enumerate(zip(*arrays, strict=True)):
                results[f"{name}[{i}]"] = pair
        for name, (ours_numpy, ours_torch) in results.items():
            widened = name == "entropy" and np.lib.NumpyVersion(np.__version__) < "2.0.0"  # a scalar plus a number was float64
            assert isinstance(ours_numpy, np.ndarray) and (ours_numpy.dtype == dtype or widened), name
            assert isinstance(ours_torch, th.Tensor), name
            np.testing.assert_allclose(ours_numpy, ours_torch.numpy(), rtol=tolerance, atol=tolerance, err_msg=name)


def draws(case: Case, n: int, library: str) -> tuple[Any, ...]:
    """n actions from the first state of a fixed set of distributions."""
    parameters = case.parameters(3, batch=1)
    parameters = (np.repeat(parameters[0], n, axis=0), *parameters[1:])
    shape = parameters[0].shape
    if library == "numpy":
        rng = np.random.default_rng(0)
        noise = case.family.noise(lambda: rng.random(shape), lambda: rng.standard_normal(shape))
        return parameters, np.asarray(case.family.sample(parameters, noise))
    generator = th.Generator().manual_seed(0)
    noise_torch = case.family.noise(
        lambda: th.rand(shape, generator=generator, dtype=th.float64),
        lambda: th.randn(shape, generator=generator, dtype=th.float64),
    )
    return parameters, case.family.sample(as_tensors(parameters), noise_torch).numpy()


@cases
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_sampling_frequencies(case: Case, library: str) -> None:
    """Chi-square over all joint actions, Kolmogorov-Smirnov for each Gaussian axis; a wrong sampler has p-values near 0."""
    n = 20_000
    parameters, actions = draws(case, n, library)
    if case.is_gaussian:
        z = (actions - parameters[0]) / np.exp(parameters[1])
        assert actions.shape == (n, 2)
        assert all(stats.kstest(z[:, i], "norm").pvalue > 1e-3 for i in range(2))
        assert abs(np.corrcoef(z.T)[0, 1]) < 4 / np.sqrt(n)  # four standard errors of the correlation of independent axes
        return
    one_state = as_tensors((parameters[0][:1],))
    nodes = case.actions_and_weights(one_state)
    observed = [int((actions == node.numpy()).all(1).sum()) for node, _ in nodes]
    assert sum(observed) == n
    assert stats.chisquare(observed, [n * weight.item() for _, weight in nodes]).pvalue > 1e-3


@cases
def test_extreme_parameters_stay_finite(case: Case) -> None:
    for dtype in (np.float32, np.float64):
        extremes = np.array([[1e30, -1e30], [-1e30, 1e30], [1e4, 0.0], [0.0, 0.0], [-1e4, 1e4]], dtype=dtype)
        columns = np.tile(extremes, (1, case.family.output_dim))[:, : case.family.output_dim]
        if case.is_gaussian:  # a mean has no limits to reach, but its standard deviation has
            old: tuple[np.ndarray, ...] = (np.zeros((5, 2), dtype), np.array([-20.0, 10.0], dtype))
            actions = old[0] + np.exp(old[1])
        else:
            old = (columns,)
            actions = case.family.sample(old, np.zeros_like(columns))
        log_prob, score = case.family.log_prob_and_score(old, actions)
        results = [log_prob, *score, case.family.entropy(old), case.family.kl(old, old), *case.family.entropy_gradient(old)]
        results += case.family.fisher_metric(old, tuple(np.ones_like(p) for p in old))
        assert all(np.isfinite(result).all() for result in results)
        if not case.is_gaussian:
            assert (log_prob <= 0).all() and (case.family.entropy(old) >= 0).all()


def test_log_softmax_of_huge_logits() -> None:
    # e^1000 overflows; the difference of the logits is all that counts: ln σ(±1) = −ln(1 + e^∓1).
    expected = [-np.log1p(np.exp(1)), -np.log1p(np.exp(-1))]
    arrays_equal(log_softmax(np.array([[1000.0, 1001.0]]))[0], expected)
    arrays_equal(log_softmax(th.tensor([[-1001.0, -1000.0]], dtype=th.float64))[0], expected)


@cases
def test_family_of_a_policy(case: Case) -> None:
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (2,)), case.space, lambda _: 1e-3)
    assert family_of(policy) == case.family


def test_a_distribution_that_is_not_in_the_table_has_no_family() -> None:
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, use_sde=True)
    assert family_of(policy) is None
