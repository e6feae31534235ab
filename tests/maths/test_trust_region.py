"""T6, T8, T9: the step to the border of the trust region and the line search back from it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_policyopt.maths.conjugate_gradient import conjugate_gradient
from sb3_policyopt.maths.trust_region import backtracking_line_search, predicted_kl, step_scale

pytestmark = pytest.mark.fast

seeds = st.integers(0, 2**31)
deltas = st.floats(1e-6, 1.0)


def problem(seed: int, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """A positive definite F and a gradient g."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((n, n))
    return factor @ factor.T + 0.1 * np.eye(n), rng.standard_normal(n)


@given(seed=seeds, delta=deltas, damping=st.floats(0, 10))
def test_T8_predicted_kl_of_the_scaled_step_is_delta_even_if_the_system_was_damped(
    seed: int, delta: float, damping: float
) -> None:
    fisher, g = problem(seed)
    x = conjugate_gradient(lambda v: fisher @ v, g, damping=damping).x
    step = step_scale(x, fisher @ x, delta) * x
    assert predicted_kl(step, fisher @ step) == pytest.approx(delta, rel=1e-12)


@given(seed=seeds, delta=deltas, dtype=st.sampled_from([th.float32, th.float64]))
def test_T8_in_torch_as_in_numpy(seed: int, delta: float, dtype: th.dtype) -> None:
    fisher, g = problem(seed)
    f, x = th.tensor(fisher, dtype=dtype), th.tensor(g, dtype=dtype)
    scale = step_scale(x, f @ x, delta)
    assert isinstance(scale, float)
    assert scale == pytest.approx(step_scale(g, fisher @ g, delta), rel=1e-10 if dtype == th.float64 else 1e-4)
    assert predicted_kl(scale * x, scale * (f @ x)) == pytest.approx(delta, rel=1e-10 if dtype == th.float64 else 1e-5)


@given(seed=seeds, delta=deltas)
def test_T6_no_feasible_step_beats_the_scaled_natural_gradient(seed: int, delta: float) -> None:
    """The optimum by Lagrange: Δ = F⁻¹g·√(2δ / gᵀF⁻¹g), on the boundary, with gᵀΔ = √(2δ gᵀF⁻¹g)."""
    fisher, g = problem(seed)
    x = conjugate_gradient(lambda v: fisher @ v, g, 50, 1e-13).x
    step = step_scale(x, fisher @ x, delta) * x
    gain = g @ step
    assert gain == pytest.approx(math.sqrt(2 * delta * g @ np.linalg.solve(fisher, g)), rel=1e-9)
    # Brute force: random directions, each taken to the boundary, as every direction is best there.
    directions = np.random.default_rng([seed, 1]).standard_normal((500, len(g)))
    directions /= np.sqrt(np.einsum("ij,jk,ik->i", directions, fisher, directions) / (2 * delta))[:, None]
    assert (directions @ g).max() <= gain * (1 + 1e-9)
    # Stationarity: g = μ F Δ with one multiplier μ > 0.
    multipliers = g / (fisher @ step)
    np.testing.assert_allclose(multipliers, np.full(5, np.sqrt(g @ np.linalg.solve(fisher, g) / (2 * delta))), rtol=1e-6)


def test_T6_a_general_solver_finds_the_same_optimum() -> None:
    fisher, g = problem(7)
    delta = 0.01
    solution = scipy.optimize.minimize(
        lambda d: -g @ d,
        np.zeros(5),
        jac=lambda d: -g,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda d: delta - 0.5 * d @ fisher @ d, "jac": lambda d: -fisher @ d},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    x = np.linalg.solve(fisher, g)
    np.testing.assert_allclose(solution.x, step_scale(x, fisher @ x, delta) * x, rtol=1e-3, atol=1e-4)


def test_T8_without_positive_curvature_there_is_no_border() -> None:
    x = np.ones(3)
    for fisher_x in (np.zeros(3), -x, np.full(3, np.nan), np.full(3, np.inf)):
        assert step_scale(x, fisher_x, 0.01) == 0.0


# ---------------------------------------------------------------------- T9


def search(parameters: Any, step: Any, evaluate: Callable[..., Any], **options: Any) -> Any:
    return backtracking_line_search(parameters, step, evaluate, **{"surrogate_before": 0.0, "delta": 0.01, **options})


def both_libraries(test: Callable[..., Any]) -> Callable[..., Any]:
    return pytest.mark.parametrize("make", [np.array, th.tensor], ids=["numpy", "torch"])(test)


@both_libraries
@given(st.floats(0.05, 0.95), st.integers(0, 9))
def test_T9_takes_the_first_fraction_inside_the_trust_region(make: Callable[..., Any], shrink: float, j: int) -> None:
    """KL = fraction² is inside δ first at the fraction β^j, if √δ lies between β^j and β^(j−1)."""
    parameters, step = make([0.0, 2.0]), make([1.0, 0.0])
    fractions = []

    def evaluate() -> tuple[float, float]:
        fractions.append(float(parameters[0]))
        return 1.0, fractions[-1] ** 2

    delta = (shrink**j * shrink**-0.5) ** 2
    result = search(parameters, step, evaluate, delta=delta, shrinking_factor=shrink)
    assert result.reason == "accepted"
    assert result.fraction == shrink**j
    assert result.evaluations == j + 1
    np.testing.assert_allclose(fractions, [shrink**i for i in range(j + 1)], rtol=1e-6)
    assert (result.kl, result.surrogate) == (fractions[-1] ** 2, 1.0)
    assert (parameters == make([0.0, 2.0]) + result.fraction * step).all()


BITS = [0.0, -0.0, 1e-45, 0.1, -3.0e38]  # zeros of both signs, the smallest float32, and one that is no binary fraction


def bits(array: Any) -> bytes:
    return np.asarray(array).tobytes()


def awkward(library: str) -> Any:
    array = np.array(BITS, dtype=np.float32)
    return array if library == "numpy" else th.from_numpy(array)


REFUSALS = {
    "kl_exceeded": (1.0, 0.02),
    "no_improvement": (0.0, 0.005),
    "non_finite": (math.nan, 0.005),
}


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("reason", "answer"),
    [*REFUSALS.items(), ("non_finite", (1.0, math.nan)), ("non_finite", (math.inf, 0.0)), ("non_finite", (1.0, math.inf))],
)
def test_T9_a_refused_step_leaves_every_bit_as_it_was_and_says_why(
    library: str, reason: str, answer: tuple[float, float]
) -> None:
    parameters, step = awkward(library), awkward(library) * 0 + 1
    before, storage = bits(parameters), parameters.__array_interface__["data"] if library == "numpy" else parameters.data_ptr()
    result = search(parameters, step, lambda: answer, max_iterations=4)
    assert (result.reason, result.evaluations) == (reason, 4)
    assert (result.fraction, result.kl, result.surrogate) == (0.0, 0.0, 0.0)
    assert bits(parameters) == before
    assert (parameters.__array_interface__["data"] if library == "numpy" else parameters.data_ptr()) == storage


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_T9_an_exception_restores_every_bit(library: str, error: type[Any]) -> None:
    parameters = awkward(library)
    before = bits(parameters)

    def evaluate() -> None:
        assert bits(parameters) != before
        raise error

    with pytest.raises(error):
        search(parameters, parameters * 0 + 1, evaluate)
    assert bits(parameters) == before


@both_libraries
def test_T9_the_reason_is_that_of_the_last_candidate(make: Callable[..., Any]) -> None:
    parameters = make([0.0])
    answers = iter([(math.nan, 0.0), (1.0, 1.0), (-1.0, 0.0)])
    assert search(parameters, make([1.0]), lambda: next(answers), max_iterations=3).reason == "no_improvement"
    answers = iter([(math.nan, 0.0), (1.0, 1.0), (-1.0, 0.0), (0.5, 0.01)])  # at last inside, KL = δ included
    result = search(parameters, make([1.0]), lambda: next(answers), max_iterations=4, shrinking_factor=0.5)
    assert (result.reason, result.fraction, result.surrogate, result.kl) == ("accepted", 0.125, 0.5, 0.01)


@both_libraries
def test_T9_there_is_no_candidate_for_a_step_of_nothing_or_of_infinity(make: Callable[..., Any]) -> None:
    def never() -> None:
        raise AssertionError("nothing to evaluate")

    parameters = make([1.0, 2.0])
    for step, reason in ((0.0, "zero_step"), (math.nan, "non_finite"), (math.inf, "non_finite"), (-math.inf, "non_finite")):
        result = search(parameters, make([0.0, step]), never, surrogate_before=0.3)
        assert (result.reason, result.fraction, result.surrogate, result.evaluations) == (reason, 0.0, 0.3, 0)
        assert (parameters == make([1.0, 2.0])).all()


@both_libraries
def test_T9_without_enforcement_the_full_step_is_taken_whatever_it_does(make: Callable[..., Any]) -> None:
    parameters, step = make([1.0, 2.0]), make([0.5, -0.5])
    result = search(parameters, step, lambda: (-1.0, 5.0), enforce=False)
    assert (result.reason, result.fraction, result.kl, result.surrogate, result.evaluations) == ("accepted", 1.0, 5.0, -1.0, 1)
    assert (parameters == make([1.5, 1.5])).all()
    result = search(parameters, step, lambda: (math.nan, 5.0), enforce=False)
    assert (result.reason, result.fraction, result.evaluations) == ("non_finite", 0.0, 1)
    assert (parameters == make([1.5, 1.5])).all()


@given(seed=seeds, delta=st.floats(1e-4, 0.1))
def test_T9_on_a_real_kl_the_accepted_step_keeps_the_promise(seed: int, delta: float) -> None:
    """Gaussians with shared σ: KL(μ, σ) is not quadratic in ln σ, so that full steps do overshoot."""
    fisher = np.diag([1.0, 2.0])  # of (μ, ln σ) at μ = 0, σ = 1
    parameters, g = np.zeros(2), np.random.default_rng(seed).standard_normal(2)

    def kl() -> Any:
        mean, log_std = parameters
        return log_std + 0.5 * (1 + mean**2) * np.exp(-2 * log_std) - 0.5  # old first: N(0, 1) against N(μ, σ²)

    x = np.linalg.solve(fisher, g)
    step = step_scale(x, fisher @ x, delta) * x
    result = search(parameters, step, lambda: (g @ parameters, kl()), delta=delta)
    assert result.reason == "accepted"
    assert 0 < result.kl == pytest.approx(kl()) and kl() <= delta
    assert g @ parameters > 0
