"""T7: the conjugate gradient method against dense and scipy solvers, and its behaviour where the matrix is bad."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from no_waiting import NoWaiting

from sb3_policyopt.maths.conjugate_gradient import STATUSES, conjugate_gradient, conjugate_gradient_on_device

pytestmark = pytest.mark.fast

eigenvalue_lists = st.lists(st.floats(1e-2, 1e2), min_size=1, max_size=12)
seeds = st.integers(0, 2**31)


def spd(eigenvalues: list[float], seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues and random orthonormal eigenvectors."""
    n = len(eigenvalues)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return (basis * np.asarray(eigenvalues, dtype=float)) @ basis.T


def right_hand_side(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, 1]).standard_normal(n)


@given(eigenvalues=eigenvalue_lists, seed=seeds, damping=st.sampled_from([0.0, 0.1, 10.0]))
def test_T7_solves_what_a_dense_solver_solves(eigenvalues: list[float], seed: int, damping: float) -> None:
    n = len(eigenvalues)
    matrix, b = spd(eigenvalues, seed), right_hand_side(n, seed)
    damped = matrix + damping * np.eye(n)
    result = conjugate_gradient(lambda v: matrix @ v, b, max_iterations=20 * n, tolerance=1e-12, damping=damping)
    reference = scipy.linalg.solve(damped, b, assume_a="pos")
    assert result.status == "converged"
    assert result.residual <= 1e-12
    # ‖x − A⁻¹b‖ ≤ ‖A⁻¹‖ ‖b − Ax‖ = residual · cond(A) relative to ‖x‖; the factor 10 is for rounding.
    bound = 10 * 1e-12 * np.linalg.cond(damped) * np.linalg.norm(reference)
    assert np.linalg.norm(result.x - reference) <= bound
    true_residual = np.linalg.norm(b - damped @ result.x) / np.linalg.norm(b)
    assert true_residual <= 1e-10  # the recurrence's residual is honest


@pytest.mark.parametrize("k", [1, 2, 5])
@given(eigenvalues=st.lists(st.floats(0.1, 10), min_size=6, max_size=12, unique=True), seed=seeds)
def test_T7_every_iterate_is_that_of_scipy(k: int, eigenvalues: list[float], seed: int) -> None:
    matrix, b = spd(eigenvalues, seed), right_hand_side(len(eigenvalues), seed)
    ours = conjugate_gradient(lambda v: matrix @ v, b, max_iterations=k, tolerance=0.0)
    theirs, _ = scipy.sparse.linalg.cg(matrix, b, maxiter=k, rtol=0.0, atol=0.0)
    np.testing.assert_allclose(ours.x, theirs, rtol=1e-8, atol=1e-10 * np.linalg.norm(theirs))
    assert ours.iterations == k


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(eigenvalues=st.lists(st.floats(0.1, 10), min_size=1, max_size=12), seed=seeds, exponent=st.integers(-8, 8))
def test_T7_scaling_the_right_hand_side_scales_the_solution(
    dtype: str, eigenvalues: list[float], seed: int, exponent: int
) -> None:
    """cg(A, c·b) = c·cg(A, b): late in training the gradient is small, and an absolute tolerance would return no step."""
    matrix = spd(eigenvalues, seed).astype(dtype)
    b = right_hand_side(len(eigenvalues), seed).astype(dtype)
    c = 10.0**exponent
    one = conjugate_gradient(lambda v: matrix @ v, b, 50)
    scaled = conjugate_gradient(lambda v: matrix @ v, (c * b).astype(dtype), 50)
    assert one.status == scaled.status == "converged"
    assert scaled.x.dtype == dtype
    # Both residuals are below 1e-5 ‖b‖, hence both errors below 1e-5 cond(A) ‖x‖; cond(A) ≤ 100.
    assert np.linalg.norm(scaled.x / c - one.x) <= 3e-5 * np.linalg.cond(matrix) * np.linalg.norm(one.x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("power", [-100, -26, 0, 26, 60])
def test_T7_a_power_of_two_scales_the_solution_to_the_last_bit(dtype: str, power: int) -> None:
    matrix = spd([1.0, 2.0, 3.0, 50.0]).astype(dtype)
    b = right_hand_side(4).astype(dtype)
    c = 2.0**power  # multiplying by it rounds nothing; 2^-26 is about 1e-8
    one = conjugate_gradient(lambda v: matrix @ v, b)
    scaled = conjugate_gradient(lambda v: matrix @ v, c * b)
    assert (scaled.x == c * one.x).all()
    assert (scaled.iterations, scaled.residual, scaled.status) == (one.iterations, one.residual, one.status)


@pytest.mark.parametrize("distinct", [1, 2, 3, 5])
def test_T7_as_many_iterations_as_there_are_distinct_eigenvalues(distinct: int) -> None:
    eigenvalues = [1.0 + i % distinct for i in range(15)]
    matrix, b = spd(eigenvalues), right_hand_side(15)
    result = conjugate_gradient(lambda v: matrix @ v, b, tolerance=1e-9)
    assert result.iterations == distinct
    assert result.status == "converged"


@given(eigenvalues=eigenvalue_lists, seed=seeds, damping=st.sampled_from([0.0, 0.1]), limit=st.integers(1, 15))
def test_T7_one_product_an_iteration_and_no_random_number(
    eigenvalues: list[float], seed: int, damping: float, limit: int
) -> None:
    matrix, b = spd(eigenvalues, seed), right_hand_side(len(eigenvalues), seed)
    before, products = b.copy(), 0

    def matvec(v: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        return matrix @ v

    numpy_state, torch_state = np.random.get_state(legacy=False)["state"]["key"].copy(), th.get_rng_state()
    result = conjugate_gradient(matvec, b, limit, damping=damping)
    assert result.iterations == products <= limit
    assert (np.random.get_state(legacy=False)["state"]["key"] == numpy_state).all() and th.equal(
        th.get_rng_state(), torch_state
    )
    assert (b == before).all()
    assert result.status == ("converged" if result.residual <= 1e-5 else "max_iterations")


@given(eigenvalues=eigenvalue_lists, seed=seeds)
def test_T7_numpy_and_torch_alike(eigenvalues: list[float], seed: int) -> None:
    matrix, b = spd(eigenvalues, seed), right_hand_side(len(eigenvalues), seed)
    with_numpy = conjugate_gradient(lambda v: matrix @ v, b, 4, damping=0.1)
    torch_matrix = th.from_numpy(matrix)
    with_torch = conjugate_gradient(lambda v: torch_matrix @ v, th.from_numpy(b), 4, damping=0.1)
    assert isinstance(with_torch.x, th.Tensor)
    np.testing.assert_allclose(with_torch.x.numpy(), with_numpy.x, rtol=1e-9, atol=1e-12 * np.abs(with_numpy.x).max())


def test_T7_zero_right_hand_side_costs_nothing() -> None:
    def never(v: Any) -> Any:
        raise AssertionError("no product is needed")

    zeros: list[Any] = [np.zeros(3), th.zeros(3)]
    for zero in zeros:
        result = conjugate_gradient(never, zero)
        assert (result.x == 0).all()
        assert (result.iterations, result.residual, result.status) == (0, 0.0, "zero_rhs")


@given(negative=st.floats(-10, 0), seed=seeds, n=st.integers(2, 8))
def test_T7_an_indefinite_matrix_is_flagged_and_never_stepped_along(negative: float, seed: int, n: int) -> None:
    matrix, b = spd([negative, *range(1, n)], seed), right_hand_side(n, seed)
    curvatures = []

    def matvec(v: np.ndarray) -> np.ndarray:
        product = matrix @ v
        curvatures.append(v @ product)
        return product

    result = conjugate_gradient(matvec, b, 3 * n, tolerance=0.0)
    if negative < -0.1:  # nearer to zero, rounding decides whether the last curvature is positive
        assert result.status == "not_positive"
    if result.status == "not_positive":
        assert curvatures[-1] <= 0 and all(curvature > 0 for curvature in curvatures[:-1])
        before = conjugate_gradient(lambda v: matrix @ v, b, len(curvatures) - 1, tolerance=0.0)
        assert (result.x == before.x).all()  # the iterate before the bad direction
    assert np.isfinite(result.x).all()
    assert b @ result.x >= 0  # a direction of ascent, if any


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_T7_non_finite_numbers_are_flagged(library: str, bad: float) -> None:
    make: Callable[[list[float]], Any] = np.array if library == "numpy" else th.tensor
    b = make([1.0, bad, 2.0])
    result = conjugate_gradient(lambda v: v, b)
    assert (result.status, result.iterations) == ("non_finite", 0)
    assert (result.x == 0).all()

    diagonal = make([1.0, 2.0, 3.0])
    count = 0

    def spoilt_at_the_second(v: Any) -> Any:
        nonlocal count
        count += 1
        product = diagonal * v
        if count == 2:
            product[1] = bad
        return product

    b = make([1.0, 1.0, 1.0])
    result = conjugate_gradient(spoilt_at_the_second, b)
    assert (result.status, result.iterations) == ("non_finite", 2)
    assert (result.x == conjugate_gradient(lambda v: diagonal * v, b, 1).x).all()


def test_T7_an_overflow_is_flagged_and_leaves_no_infinity() -> None:
    # 1 / 1e-320 overflows: the very first step would be infinite.
    result = conjugate_gradient(lambda v: 1e-320 * v, np.ones(3))
    assert result.status == "non_finite"
    assert np.isfinite(result.x).all()


def test_T7_more_damping_gives_a_shorter_solution() -> None:
    matrix, b = spd([0.01, 0.1, 1.0, 10.0]), right_hand_side(4)
    norms = [
        np.linalg.norm(conjugate_gradient(lambda v: matrix @ v, b, 50, 1e-12, damping).x) for damping in (0.0, 0.1, 1.0, 10.0)
    ]
    assert norms == sorted(norms, reverse=True)


def on_device(matvec: Callable[[th.Tensor], th.Tensor], b: th.Tensor, *options: Any) -> tuple[th.Tensor, int, float, str]:
    with NoWaiting():  # type: ignore[no-untyped-call]
        result = conjugate_gradient_on_device(matvec, b, *options)
    iterations, residual, status = result.numbers.tolist()
    return result.x, int(iterations), residual, STATUSES[int(status)]


@given(
    eigenvalues=st.lists(st.one_of(st.floats(1e-2, 1e2), st.floats(-10, -0.1)), min_size=1, max_size=12),
    seed=seeds,
    iterations=st.integers(0, 15),
    damping=st.sampled_from([0.0, 0.1]),
    scale=st.sampled_from([0.0, 1e-12, 1.0, 1e12]),
)
def test_T7_without_waiting_for_the_device_it_is_the_same(
    eigenvalues: list[float], seed: int, iterations: int, damping: float, scale: float
) -> None:
    matrix, b = th.from_numpy(spd(eigenvalues, seed)), scale * th.from_numpy(right_hand_side(len(eigenvalues), seed))
    expected = conjugate_gradient(lambda v: matrix @ v, b, iterations, 1e-5, damping)
    x, count, residual, status = on_device(lambda v: matrix @ v, b, iterations, 1e-5, damping)
    if status == expected.status:  # rounding decides whether a last residual is just below the tolerance
        assert count == expected.iterations
        np.testing.assert_allclose(x, expected.x, rtol=1e-6, atol=1e-9 * float(expected.x.abs().max()))
        assert residual == pytest.approx(expected.residual, rel=1e-4, abs=1e-9)
    else:
        assert {status, expected.status} <= {"converged", "max_iterations", "not_positive"}
        assert min(residual, expected.residual) < 2e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_T7_without_waiting_non_finite_numbers_are_flagged(bad: float) -> None:
    x, iterations, residual, status = on_device(lambda v: v, th.tensor([1.0, bad, 2.0]))
    assert (status, iterations, residual) == ("non_finite", 0, 1.0) and (x == 0).all()

    diagonal = th.tensor([1.0, 2.0, 3.0])
    calls: list[int] = []

    def spoilt_at_the_second(v: th.Tensor) -> th.Tensor:
        calls.append(len(calls))
        return diagonal * v + (th.tensor([0.0, bad, 0.0]) if len(calls) == 2 else 0.0)

    x, iterations, _, status = on_device(spoilt_at_the_second, th.ones(3))
    assert (status, iterations) == ("non_finite", 2)
    np.testing.assert_allclose(x, conjugate_gradient(lambda v: diagonal * v, th.ones(3), 1).x, rtol=1e-6)


def test_T7_without_waiting_an_overflow_leaves_no_infinity() -> None:
    x, _, _, status = on_device(lambda v: 1e-320 * v, th.ones(3, dtype=th.float64))
    assert status == "non_finite" and x.isfinite().all()
