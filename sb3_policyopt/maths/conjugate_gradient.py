"""T7: the conjugate gradient method, which solves F x = g with Fisher-vector products only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, get_args

import torch as th

from sb3_policyopt.maths.arrays import ArrayT, copy, namespace

Status = Literal["converged", "max_iterations", "zero_rhs", "not_positive", "non_finite"]


@dataclass(frozen=True)
class ConjugateGradientResult(Generic[ArrayT]):
    """
    What :func:`conjugate_gradient` found.

    :param x: the approximate solution, shape (n,); finite whatever the status
    :param iterations: number of matrix-vector products
    :param residual: ‖b − A x‖ / ‖b‖ from CG's own recurrence; 0 for b = 0
    :param status: "converged"; "max_iterations"; "zero_rhs", when b = 0 and so x = 0; "not_positive", when a direction
        of non-positive curvature was met, x being the iterate before it; "non_finite", when b or a product held a NaN
        or an infinity or a step overflowed, x being the iterate before it
    """

    x: ArrayT
    iterations: int
    residual: float
    status: Status


def conjugate_gradient(
    matvec: Callable[[ArrayT], ArrayT],
    b: ArrayT,
    max_iterations: int = 15,
    tolerance: float = 1e-5,
    damping: float = 0.0,
) -> ConjugateGradientResult[ArrayT]:
    """
    T7: solve (A + λI) x = b for a symmetric positive definite A + λI (Hestenes and Stiefel 1952).

    It differs from sb3-contrib's solver in four ways. (1) It starts from x = 0: no product and no random number is spent
    on the start. (2) It solves for b/‖b‖ with a relative tolerance, so cg(A, c·b) = c·cg(A, b) for any scale c.
    (3) It stops where pᵀAp ≤ 0 instead of stepping the wrong way. (4) It reports how it ended. In exact arithmetic
    the solution is reached after n iterations, n being the number of distinct eigenvalues.

    :param matvec: v ↦ A v, without the damping
    :param b: right-hand side, shape (n,)
    :param max_iterations: most products to spend; each iteration spends one
    :param tolerance: stop at ‖b − (A + λI)x‖ ≤ tolerance · ‖b‖
    :param damping: λ ≥ 0
    :return: the solution with iterations, relative residual and status
    """
    if isinstance(b, th.Tensor) and b.device.type != "cpu":
        return in_python(conjugate_gradient_on_device(matvec, b, max_iterations, tolerance, damping))
    scale = _norm(b)
    x = namespace(b).zeros_like(b)
    if scale == 0:
        return ConjugateGradientResult(x, 0, 0.0, "zero_rhs")
    if not scale < float("inf"):
        return ConjugateGradientResult(x, 0, 1.0, "non_finite")

    residual = b / scale
    direction = copy(residual)
    squared_norm = float(residual @ residual)
    status: Status = "max_iterations"
    iterations = 0
    while iterations < max_iterations:
        product = matvec(direction)
        if damping:
            product = product + damping * direction
        iterations += 1
        curvature = float(direction @ product)  # pᵀ A p
        if not abs(curvature) < float("inf"):
            status = "non_finite"
            break
        if curvature <= 0:
            status = "not_positive"
            break
        step = squared_norm / curvature
        residual -= step * product
        new_squared_norm = float(residual @ residual)
        if not new_squared_norm < float("inf"):  # the step overflowed
            status = "non_finite"
            break
        x += step * direction
        direction = residual + (new_squared_norm / squared_norm) * direction
        squared_norm = new_squared_norm
        if squared_norm**0.5 <= tolerance:
            status = "converged"
            break
    return ConjugateGradientResult(x * scale, iterations, squared_norm**0.5, status)


@dataclass(frozen=True)
class DeviceResult:
    """
    What :func:`conjugate_gradient_on_device` found, without having waited for it.

    :param x: the approximate solution, shape (n,)
    :param numbers: iterations, relative residual, and the number of the status in ``STATUSES``; shape (3,)
    """

    x: th.Tensor
    numbers: th.Tensor


STATUSES: tuple[Status, ...] = get_args(Status)


def conjugate_gradient_on_device(
    matvec: Callable[[th.Tensor], th.Tensor],
    b: th.Tensor,
    max_iterations: int = 15,
    tolerance: float = 1e-5,
    damping: float | th.Tensor = 0.0,
) -> DeviceResult:
    """
    T7 with the iterates of :func:`conjugate_gradient`, but without waiting for the device: all iterations are computed, and
    once one has ended the method the others change nothing.

    :param matvec: v ↦ A v, without the damping
    :param b: right-hand side, shape (n,)
    :param max_iterations: products to spend
    :param tolerance: stop at ‖b − (A + λI)x‖ ≤ tolerance · ‖b‖
    :param damping: λ ≥ 0; a tensor of shape () where it changes between replays of a graph
    :return: the solution, and what else there is to say
    """
    largest = b.abs().max()
    scale = largest * th.linalg.vector_norm(b / th.where(largest > 0, largest, 1.0))
    status = th.full_like(scale, STATUSES.index("max_iterations"))
    status = th.where(scale.isfinite(), status, STATUSES.index("non_finite"))
    status = th.where(scale == 0, STATUSES.index("zero_rhs"), status)
    active = scale.isfinite() & (scale != 0)
    residual = th.where(active, b / th.where(active, scale, 1.0), 0.0)
    x, direction, squared_norm, iterations = th.zeros_like(b), residual.clone(), residual @ residual, th.zeros_like(scale)
    for _ in range(max_iterations):
        product = matvec(direction)
        if isinstance(damping, th.Tensor) or damping:
            product = product + damping * direction
        iterations = iterations + active
        curvature = direction @ product
        infinite, negative = ~curvature.isfinite(), curvature <= 0
        step = squared_norm / curvature
        new_residual = residual - step * product
        new_squared_norm = new_residual @ new_residual
        infinite = infinite | ~(negative | new_squared_norm.isfinite())
        status = th.where(active & negative, STATUSES.index("not_positive"), status)
        status = th.where(active & infinite, STATUSES.index("non_finite"), status)
        active = active & ~(infinite | negative)
        x = th.where(active, x + step * direction, x)
        direction = th.where(active, new_residual + (new_squared_norm / squared_norm) * direction, direction)
        residual = th.where(active, new_residual, residual)
        squared_norm = th.where(active, new_squared_norm, squared_norm)
        converged = active & (squared_norm.sqrt() <= tolerance)
        status = th.where(converged, STATUSES.index("converged"), status)
        active = active & ~converged
    relative = th.where(scale == 0, 0.0, th.where(scale.isfinite(), squared_norm.sqrt(), 1.0))
    return DeviceResult(th.where(iterations > 0, x * scale, x), th.stack((iterations, relative, status)))


def in_python(result: DeviceResult) -> ConjugateGradientResult[th.Tensor]:
    """
    A result with numbers of Python.

    :param result: which is waited for
    :return: the result
    """
    iterations, residual, status = result.numbers.tolist()
    return ConjugateGradientResult(result.x, int(iterations), residual, STATUSES[int(status)])


def _norm(vector: ArrayT) -> float:
    """
    Euclidean norm that neither under- nor overflows; NaN or infinity if an entry is.

    :param vector: shape (n,)
    :return: ‖vector‖
    """
    largest = float(abs(vector).max())
    if not 0 < largest < float("inf"):
        return largest
    scaled = vector / largest
    return largest * float(scaled @ scaled) ** 0.5
