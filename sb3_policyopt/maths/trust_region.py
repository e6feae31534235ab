"""T8, T9: how far to go along a direction: to the border of the trust region, then back until KL ≤ δ and J has improved."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from sb3_policyopt.maths.arrays import ArrayT, copy

Reason = Literal["accepted", "kl_exceeded", "no_improvement", "non_finite", "zero_step"]
REFUSALS = tuple(reason for reason in get_args(Reason) if reason != "accepted")


def step_scale(x: ArrayT, fisher_x: ArrayT, delta: float) -> float:
    """
    T8: α = √(2δ / xᵀF x), the factor that takes the direction x to the border of the trust region.

    The KL of a small step Δ is ½ΔᵀFΔ (T4). Put Δ = αx and ask for δ: ½α² xᵀFx = δ. With the undamped F here the
    predicted KL of the step is δ exactly, even if x solved a damped system.

    :param x: direction, shape (n,)
    :param fisher_x: F x, undamped, shape (n,)
    :param delta: trust-region radius δ > 0, in nats
    :return: α; 0 if xᵀFx is not a positive number, as there is then no border to go to
    """
    curvature = float(x @ fisher_x)
    return math.sqrt(2 * delta / curvature) if 0 < curvature < math.inf else 0.0


def predicted_kl(step: ArrayT, fisher_step: ArrayT) -> float:
    """
    T4: ½ ΔᵀFΔ, the KL of a small step.

    :param step: Δ, shape (n,)
    :param fisher_step: F Δ, undamped, shape (n,)
    :return: in nats
    """
    return 0.5 * float(step @ fisher_step)


@dataclass(frozen=True)
class LineSearchResult:
    """
    What :func:`backtracking_line_search` did.

    :param fraction: βʲ of the step that was taken; 0 if none was, and the parameters are as before, bit for bit
    :param surrogate: J at the parameters that were kept
    :param kl: KL at the parameters that were kept, in nats; 0 if no step was taken
    :param reason: "accepted", or why the last candidate was refused: "kl_exceeded" (KL > δ), "no_improvement" (J did
        not grow), "non_finite" (J or KL was NaN or infinite), "zero_step" (there was no step to take)
    :param evaluations: number of candidates tried
    """

    fraction: float
    surrogate: float
    kl: float
    reason: Reason
    evaluations: int


def backtracking_line_search(
    parameters: ArrayT,
    step: ArrayT,
    evaluate: Callable[[], tuple[float, float]],
    *,
    surrogate_before: float,
    delta: float,
    shrinking_factor: float = 0.8,
    max_iterations: int = 10,
    enforce: bool = True,
) -> LineSearchResult:
    """
    T9: shrink the step by βʲ, j = 0, 1, …, until KL ≤ δ and J has improved.

    The parameters are changed in place. Unless a step is accepted (or if ``evaluate`` raises) they are left as they
    were, bit for bit.

    :param parameters: θ_old on entry, the new θ on return, shape (n,)
    :param step: the full step Δ, shape (n,)
    :param evaluate: () ↦ (J, KL) at the current content of ``parameters``
    :param surrogate_before: J(θ_old)
    :param delta: δ, in nats
    :param shrinking_factor: β in (0, 1)
    :param max_iterations: most candidates to try
    :param enforce: False takes the full step if it is finite, whatever KL and J: the bare natural-gradient step
    :return: fraction taken, J and KL there, and the reason
    """
    rejected = LineSearchResult(0.0, surrogate_before, 0.0, "zero_step", 0)
    largest = float(abs(step).max()) if len(step) else 0.0
    if largest == 0:
        return rejected
    if not math.isfinite(largest):
        return LineSearchResult(0.0, surrogate_before, 0.0, "non_finite", 0)

    before = copy(parameters)
    accepted = False
    try:
        for j in range(max_iterations if enforce else 1):
            fraction = shrinking_factor**j
            parameters[...] = before + fraction * step
            surrogate, kl = evaluate()
            if not (math.isfinite(surrogate) and math.isfinite(kl)):
                reason: Reason = "non_finite"
            elif enforce and kl > delta:
                reason = "kl_exceeded"
            elif enforce and surrogate <= surrogate_before:
                reason = "no_improvement"
            else:
                accepted = True
                return LineSearchResult(fraction, surrogate, kl, "accepted", j + 1)
            rejected = LineSearchResult(0.0, surrogate_before, 0.0, reason, j + 1)
        return rejected
    finally:
        if not accepted:
            parameters[...] = before
