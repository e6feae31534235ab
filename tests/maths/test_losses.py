"""S1, T1, P1-P5: the objectives, their gradients by finite differences, and their explicit slopes by autograd."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_policyopt.distributions import Categorical, DiagonalGaussian
from sb3_policyopt.maths import losses
from sb3_policyopt.maths.terms import Maximum, value_of

pytestmark = pytest.mark.fast

seeds = st.integers(0, 2**31)
EPSILON = 0.2


def finite_difference(function: Callable[..., Any], x: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function of a vector, exact to O(h²)."""
    gradient = np.empty_like(x)
    for i in range(x.size):
        step = np.zeros_like(x)
        step.flat[i] = h
        gradient.flat[i] = (function(x + step) - function(x - step)) / (2 * h)
    return gradient


def policy(theta: np.ndarray, observations: np.ndarray) -> tuple[np.ndarray]:
    """A linear-softmax policy: logits = obs W, W of shape (3, 4)."""
    return (observations @ theta.reshape(3, 4),)


@given(seed=seeds)
def test_S1_the_ratio_at_the_old_parameters_has_the_policy_gradient(seed: int) -> None:
    """∇J = E[A ∇r] = E[A ∇ln π] at θ_old, where r = 1: S1, by finite differences of T1 and by the score."""
    rng = np.random.default_rng(seed)
    family, theta = Categorical(4), rng.standard_normal(12)
    observations, advantages = rng.standard_normal((6, 3)), rng.standard_normal(6)
    actions = rng.integers(0, 4, (6, 1))
    old_log_prob, (score,) = family.log_prob_and_score(policy(theta, observations), actions)

    def surrogate(theta: np.ndarray) -> Any:
        log_prob = family.log_prob(policy(theta, observations), actions)
        return losses.surrogate(losses.probability_ratio(log_prob, old_log_prob), advantages)

    ratio = losses.probability_ratio(old_log_prob, old_log_prob)
    assert (ratio == 1).all()
    slope = losses.surrogate_slope(ratio, advantages)
    np.testing.assert_allclose(slope, advantages / 6)
    by_hand = observations.T @ (slope[:, None] * score)  # the chain rule through logits = obs W
    np.testing.assert_allclose(finite_difference(surrogate, theta).reshape(3, 4), by_hand, atol=1e-8)


SIGN_CASES = [
    # A, r, whether the clip is active: only where r has moved past the bound in the direction that A asks for
    (2.0, 1.5, True),
    (2.0, 0.5, False),
    (-2.0, 1.5, False),
    (-2.0, 0.5, True),
    (2.0, 1.1, False),
    (-2.0, 0.9, False),
]


@pytest.mark.parametrize(("advantage", "ratio", "clipped"), SIGN_CASES)
def test_P2_gradient_in_all_sign_cases(advantage: float, ratio: float, clipped: bool) -> None:
    """The gradient is r A ∇ln π where the clip is inactive, and exactly 0 where it is active."""
    old_log_prob, advantages = np.array([-1.0]), np.array([advantage])
    log_prob = old_log_prob + math.log(ratio)

    def objective(log_prob: np.ndarray) -> Any:
        return losses.clipped_surrogate(losses.probability_ratio(log_prob, old_log_prob), advantages, EPSILON)

    _, slope = losses.clipped_surrogate_and_slope(losses.probability_ratio(log_prob, old_log_prob), advantages, EPSILON)
    if clipped:
        assert slope == 0.0
        assert finite_difference(objective, log_prob) == 0.0
        assert objective(log_prob) == pytest.approx(advantage * (1 + EPSILON if advantage > 0 else 1 - EPSILON))
    else:
        assert slope == pytest.approx(ratio * advantage)
        assert finite_difference(objective, log_prob) == pytest.approx(ratio * advantage, rel=1e-8)
        assert objective(log_prob) == pytest.approx(ratio * advantage)
    leaf = th.tensor(log_prob, requires_grad=True)
    objective_th = losses.clipped_surrogate(
        losses.probability_ratio(leaf, th.tensor(old_log_prob)), th.tensor(advantages), EPSILON
    )
    assert isinstance(objective_th, th.Tensor)
    (by_autograd,) = th.autograd.grad(objective_th, leaf)
    assert by_autograd.item() == pytest.approx(slope.item(), rel=1e-12)
    assert not clipped or by_autograd.item() == 0.0


@given(seed=seeds)
def test_P2_is_a_lower_bound_of_T1_and_equal_near_the_old_policy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ratio, advantages = np.exp(rng.standard_normal(20)), rng.standard_normal(20)
    assert losses.clipped_surrogate(ratio, advantages, EPSILON) <= losses.surrogate(ratio, advantages) + 1e-12
    near = np.clip(ratio, 0.81, 1.19)
    assert losses.clipped_surrogate(near, advantages, EPSILON) == losses.surrogate(near, advantages)


@given(seed=seeds)
def test_P3_gradient_of_the_entropy_bonus_by_finite_differences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    family, theta, observations = Categorical(4), rng.standard_normal(12), rng.standard_normal((6, 3))
    (per_sample,) = family.entropy_gradient(policy(theta, observations))
    by_hand = observations.T @ per_sample / 6
    numeric = finite_difference(lambda t: family.entropy(policy(t, observations)).mean(), theta)
    np.testing.assert_allclose(numeric.reshape(3, 4), by_hand, atol=1e-8)

    gaussian, log_std = DiagonalGaussian(2), rng.standard_normal(2)
    numeric = finite_difference(lambda s: gaussian.entropy((np.zeros((6, 2)), s)).mean(), log_std)
    np.testing.assert_allclose(numeric, gaussian.entropy_gradient((np.zeros((6, 2)), log_std))[1][0], atol=1e-8)


# ---------------------------------------------------------------------- slopes against autograd


@given(seed=seeds, clip_range=st.floats(0.01, 0.9), n=st.integers(1, 50))
def test_P2_T1_slopes_are_the_gradients_of_autograd(seed: int, clip_range: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    old_log_prob, advantages = th.tensor(rng.standard_normal(n)), th.tensor(rng.standard_normal(n))
    log_prob = (old_log_prob + 0.5 * th.tensor(rng.standard_normal(n))).requires_grad_()
    ratio = losses.probability_ratio(log_prob, old_log_prob)
    pairs: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
        (losses.surrogate, losses.surrogate_slope),
        (
            partial(losses.clipped_surrogate, clip_range=clip_range),
            lambda ratio, advantages: losses.clipped_surrogate_and_slope(ratio, advantages, clip_range)[1],
        ),
    ]
    value = losses.clipped_surrogate_and_slope(ratio.detach(), advantages, clip_range)[0]
    assert float(value) == pytest.approx(float(losses.clipped_surrogate(ratio.detach(), advantages, clip_range)))
    for objective, slope in pairs:
        (reference,) = th.autograd.grad(objective(ratio, advantages), log_prob, retain_graph=True)
        ours = slope(ratio.detach(), advantages)
        np.testing.assert_allclose(ours.numpy(), reference.numpy(), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(slope(ratio.detach().numpy(), advantages.numpy()), ours.numpy(), rtol=1e-14)


@pytest.mark.parametrize("options", [{}, {"clipping": "clipped"}, {"clipping": "pessimistic"}], ids=str)
@given(seed=seeds, n=st.integers(1, 50), bound=st.floats(0.05, 2))
def test_P4_slope_is_the_gradient_of_autograd(options: dict[str, Any], seed: int, n: int, bound: float) -> None:
    rng = np.random.default_rng(seed)
    values, targets, old_values = (th.tensor(rng.standard_normal(n)) for _ in range(3))
    values.requires_grad_()
    arguments: dict[str, Any] = {"old_values": old_values, "clip_range_vf": bound, **options} if options else {}
    loss = losses.value_loss(values, targets, **arguments)
    assert isinstance(loss, th.Tensor)
    (reference,) = th.autograd.grad(loss, values)
    ours_loss, ours = losses.value_loss_and_slope(values.detach(), targets, **arguments)
    assert float(ours_loss) == pytest.approx(loss.item())
    np.testing.assert_allclose(ours.numpy(), reference.numpy(), rtol=1e-10, atol=1e-14)
    in_numpy: dict[str, Any] = {
        name: np.asarray(value) if name == "old_values" else value for name, value in arguments.items()
    }
    assert losses.value_loss(values.detach().numpy(), targets.numpy(), **in_numpy) == pytest.approx(loss.item())
    loss_in_numpy, slope = losses.value_loss_and_slope(values.detach().numpy(), targets.numpy(), **in_numpy)
    assert loss_in_numpy == pytest.approx(loss.item())
    np.testing.assert_allclose(slope, ours.numpy())


def test_P4_clipped_value_loss_forgets_a_value_that_strayed_and_the_pessimistic_one_does_not() -> None:
    """V moved from 0 to 3, the target is 1, the bound 0.5: the clipped error is (0.5 − 1)² and flat, the other (3 − 1)²."""
    arguments = (np.array([3.0]), np.array([1.0]), np.array([0.0]), 0.5)
    assert losses.value_loss(*arguments, "clipped") == 0.25
    assert losses.value_loss_and_slope(*arguments, "clipped")[1] == 0.0
    assert losses.value_loss(*arguments, "pessimistic") == 4.0
    assert losses.value_loss_and_slope(*arguments, "pessimistic")[1] == 4.0
    # Where the value strayed towards the target, the clipped error is the larger one and both are flat: V = 0.9.
    arguments = (np.array([0.9]), np.array([1.0]), np.array([0.0]), 0.5)
    for clipping in ("clipped", "pessimistic"):
        assert losses.value_loss(*arguments, clipping) == 0.25
        assert losses.value_loss_and_slope(*arguments, clipping)[1] == 0.0


def test_P4_without_a_bound_is_the_mean_square() -> None:
    assert losses.value_loss(np.array([1.0, 2.0]), np.array([0.0, 4.0])) == 2.5  # (1 + 4) / 2
    loss, slope = losses.value_loss_and_slope(np.array([1.0, 2.0]), np.array([0.0, 4.0]))
    assert loss == 2.5
    np.testing.assert_array_equal(slope, [1.0, -2.0])


def test_P5_signs() -> None:
    # maximise L_CLIP + c₁ L_ENT − c₂ L_VF: −(2 + 0.5·3 − 0.25·4) = −2.5
    assert losses.combined_loss(2.0, 3.0, 4.0, ent_coef=0.5, vf_coef=0.25) == -2.5


# ---------------------------------------------------------------------- P1 and diagnostics

finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(log_prob=finite32, old_log_prob=finite32, advantage=st.floats(-1e3, 1e3, width=32))
def test_P1_ratio_and_what_is_made_of_it_stay_finite_for_any_finite_input(
    log_prob: float, old_log_prob: float, advantage: float
) -> None:
    for make in (partial(np.array, dtype=np.float32), th.tensor):
        with np.errstate(over="ignore"):  # the difference may overflow; the bound catches it
            new, old, advantages = make([log_prob]), make([old_log_prob]), make([advantage])
            ratio = losses.probability_ratio(new, old)
            results = [
                ratio,
                losses.surrogate(ratio, advantages),
                losses.surrogate_slope(ratio, advantages),
                losses.clipped_surrogate(ratio, advantages, 0.2),
                *losses.ratio_diagnostics(losses.log_ratio(new, old), ratio, 0.2).values(),
            ]
        assert all(np.isfinite(np.asarray(result)).all() for result in results)
        assert (ratio > 0).all()


@given(difference=st.floats(-20, 20, width=32), old_log_prob=st.floats(-50, 10, width=32))
def test_P1_below_the_bound_the_ratio_is_the_plain_exponential_to_the_last_bit(difference: float, old_log_prob: float) -> None:
    new, old = th.tensor([old_log_prob + difference]), th.tensor([old_log_prob])
    if abs((new - old).item()) <= losses.LOG_RATIO_BOUND:
        assert th.equal(losses.probability_ratio(new, old), th.exp(new - old))
        assert (losses.probability_ratio(new.numpy(), old.numpy()) == np.exp((new - old).numpy())).all()


@pytest.mark.parametrize("difference", [-math.inf, -50.0, -25.0, 0.5, 25.0, 50.0, math.inf])
def test_P1_beyond_the_bound_the_gradient_is_that_of_the_ratio_at_the_bound(difference: float) -> None:
    """∂r/∂ln π = r, so that a transition whose ratio is far too large still pulls the policy back."""
    new, old = th.tensor([difference], requires_grad=True), th.zeros(1)
    ratio = losses.probability_ratio(new, old)
    (slope,) = th.autograd.grad(ratio.sum(), new)
    bounded = math.exp(min(max(difference, -losses.LOG_RATIO_BOUND), losses.LOG_RATIO_BOUND))
    np.testing.assert_allclose([ratio.item(), slope.item()], bounded, rtol=1e-5)


@given(n=st.integers(1, 40), size=st.integers(1, 12), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**31))
def test_normalizing_many_minibatches_is_normalizing_each(n: int, size: int, scale: float, seed: int) -> None:
    advantages = scale * np.random.default_rng(seed).standard_normal(n)
    each = [losses.normalize(advantages[start : start + size]) for start in range(0, n, size)]
    np.testing.assert_allclose(losses.normalize_pieces(advantages, size), np.concatenate(each), rtol=1e-9, atol=1e-10)


@given(seed=seeds, n=st.integers(2, 100), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_normalized_advantages_are_those_of_torch(seed: int, n: int, scale: float, shift: float) -> None:
    advantages = th.tensor(shift + scale * np.random.default_rng(seed).standard_normal(n))
    expected = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    np.testing.assert_allclose(losses.normalize(advantages).numpy(), expected.numpy(), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(losses.normalize(advantages.numpy()), expected.numpy(), rtol=1e-9, atol=1e-10)


def test_a_batch_of_one_or_of_equals_is_not_blown_up_by_normalisation() -> None:
    makers: list[Callable[[list[float]], Any]] = [np.array, th.tensor]
    for make in makers:
        assert losses.normalize(make([3.0])) == make([3.0])
        assert (losses.normalize(make([2.0, 2.0, 2.0])) == 0).all()


@given(seed=seeds, n=st.integers(1, 200), scale=st.floats(0, 30), dtype=st.sampled_from(["float32", "float64"]))
def test_diagnostics_keep_their_ranges(seed: int, n: int, scale: float, dtype: str) -> None:
    log_prob = (scale * np.random.default_rng(seed).standard_normal(n)).astype(dtype)
    old = np.zeros(n, dtype)
    log_ratio, ratio = losses.log_ratio(log_prob, old), losses.probability_ratio(log_prob, old)
    eps = float(np.finfo(dtype).eps)
    size = losses.effective_sample_size(ratio)
    assert 1 / n * (1 - 10 * eps) <= size <= 1 + 10 * eps
    diagnostics = losses.ratio_diagnostics(log_ratio, ratio, 0.2)
    assert float(value_of(diagnostics["approx_kl"])) >= -2 * eps  # r − 1 − ln r ≥ 0, to the rounding of r near 1
    in_torch = losses.ratio_diagnostics(th.from_numpy(log_ratio), th.from_numpy(ratio), 0.2)
    for name, value in diagnostics.items():
        assert float(value_of(in_torch[name])) == pytest.approx(
            float(value_of(value)), rel=1e-4 if dtype == "float32" else 1e-6, abs=float(eps)
        )
    assert diagnostics["clip_fraction"] == np.mean((ratio > 1.2) | (ratio < 0.8))
    assert diagnostics["ratio_max"] == Maximum(ratio.max())


def test_effective_sample_size_by_hand() -> None:
    assert losses.effective_sample_size(np.ones(4)) == 1.0
    # weights 3, 1: (3 + 1)² / (2 (9 + 1)) = 16/20
    assert losses.effective_sample_size(np.array([3.0, 1.0])) == pytest.approx(0.8)


def test_approximate_kl_estimates_the_kl() -> None:
    """The mean over samples of π_old tends to D(π_old‖π) = Σ p ln(p/q): all actions, each with its probability."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    counts = (10 * p).astype(int)  # a sample of ten that has exactly the frequencies p
    log_ratio = np.repeat(np.log(q / p), counts)
    diagnostics = losses.ratio_diagnostics(log_ratio, np.exp(log_ratio), 0.2)
    assert diagnostics["approx_kl"] == pytest.approx((p * np.log(p / q)).sum())


def test_explained_variance() -> None:
    targets = np.array([1.0, 2.0, 3.0])
    assert losses.explained_variance(targets, targets) == 1.0
    assert losses.explained_variance(np.full(3, 7.0), targets) == 0.0
    assert losses.explained_variance(-targets, targets) == -3.0  # Var[2G] = 4 Var[G]
    assert math.isnan(losses.explained_variance(targets, np.ones(3)))
