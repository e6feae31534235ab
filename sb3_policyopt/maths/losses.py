"""
T1, P1-P5: ratio, surrogate, clipped surrogate, value loss and their sum, with the explicit derivatives beside them.

Every function serves torch tensors and NumPy arrays alike. Per-sample arrays have the shape (batch,).
The derivatives are what the closed-form engine multiplies by the networks' Jacobians; autograd finds the same ones.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch as th

from sb3_policyopt.maths.arrays import ArrayT, NumpyArray, Scalar, clip, fraction, largest, mean, namespace
from sb3_policyopt.maths.terms import Maximum, Terms

ValueClipping = Literal["clipped", "pessimistic"]

LOG_RATIO_BOUND = 20.0
"""|ln r| is held below this before ``exp``: e^20 = 4.9e8 squares to a finite float32, e^89 does not even exist in it."""


def normalize(advantages: ArrayT) -> ArrayT:
    """
    Advantages with mean 0 and (unbiased) standard deviation 1; a batch of one is returned as it is.

    :param advantages: A, shape (batch,)
    :return: shape (batch,)
    """
    n = len(advantages)
    if n <= 1:
        return advantages
    centred = advantages - mean(advantages)
    return centred / (((centred @ centred) / (n - 1)) ** 0.5 + 1e-8)


def normalize_pieces(advantages: NumpyArray, size: int) -> NumpyArray:
    """
    :func:`normalize` of every ``size`` advantages by themselves, and of those that are left at the end.

    :param advantages: A of several minibatches one after the other, shape (n,)
    :param size: of a minibatch
    :return: shape (n,)
    """
    if size == 1:
        return advantages
    whole = len(advantages) - len(advantages) % size
    rows = advantages[:whole].reshape(-1, size)
    centred = rows - rows.mean(1, keepdims=True)
    deviations = np.sqrt((centred**2).sum(1, keepdims=True) / (size - 1))
    return np.concatenate(((centred / (deviations + 1e-8)).reshape(-1), normalize(advantages[whole:])))


def log_ratio(log_prob: ArrayT, old_log_prob: ArrayT) -> ArrayT:
    """
    ln r(θ) = ln π_θ(a|s) − ln π_old(a|s), held within ±``LOG_RATIO_BOUND``. Its gradient is that of the exact one: such a
    transition, too, pulls the policy back.

    :param log_prob: ln π_θ(a|s), shape (batch,)
    :param old_log_prob: ln π_old(a|s), shape (batch,)
    :return: shape (batch,)
    """
    exact = log_prob - old_log_prob
    if isinstance(exact, th.Tensor) and exact.requires_grad:
        held: th.Tensor = _Held.apply(exact)  # type: ignore[no-untyped-call]
        return held
    return clip(exact, -LOG_RATIO_BOUND, LOG_RATIO_BOUND)


class _Held(th.autograd.Function):
    """Holds ln r within its bounds; the gradient passes as if it were not held, under ``torch.func``, too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(exact: th.Tensor) -> th.Tensor:
        return exact.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[th.Tensor], output: th.Tensor) -> None:
        """Nothing of the forward pass is needed in the backward one."""

    @staticmethod
    def backward(ctx: object, slope: th.Tensor) -> th.Tensor:
        return slope

    @staticmethod
    def jvp(ctx: object, tangent: th.Tensor) -> th.Tensor:
        return tangent.clone()


def probability_ratio(log_prob: ArrayT, old_log_prob: ArrayT) -> ArrayT:
    """
    P1: r(θ) = π_θ(a|s) / π_old(a|s) = exp(ln π_θ − ln π_old), finite for any finite input.

    :param log_prob: ln π_θ(a|s), shape (batch,)
    :param old_log_prob: ln π_old(a|s), shape (batch,)
    :return: r, shape (batch,)
    """
    return namespace(log_prob).exp(log_ratio(log_prob, old_log_prob))


def surrogate(ratio: ArrayT, advantages: ArrayT) -> Scalar:
    """
    T1: J(θ) = E_old[r(θ) A], to be maximised.

    :param ratio: r, shape (batch,)
    :param advantages: A, shape (batch,)
    :return: a scalar
    """
    return mean(ratio * advantages)


def surrogate_slope(ratio: ArrayT, advantages: ArrayT) -> ArrayT:
    """
    ∂J/∂ln π_i = r_i A_i / batch, since ∂r/∂ln π = r; at θ_old, where r = 1, this is the policy gradient (S1).

    :param ratio: r, shape (batch,)
    :param advantages: A, shape (batch,)
    :return: shape (batch,)
    """
    return ratio * advantages / len(ratio)


def clipped_surrogate(ratio: ArrayT, advantages: ArrayT, clip_range: float) -> Scalar:
    """
    P2: L_CLIP = E[min(r A, clip(r, 1−ε, 1+ε) A)], to be maximised.

    :param ratio: r, shape (batch,)
    :param advantages: A, shape (batch,)
    :param clip_range: ε
    :return: a scalar
    """
    clipped = clip(ratio, 1 - clip_range, 1 + clip_range)
    return mean(namespace(ratio).minimum(ratio * advantages, clipped * advantages))


def clipped_surrogate_and_slope(ratio: ArrayT, advantages: ArrayT, clip_range: float) -> tuple[Scalar, ArrayT]:
    """
    P2: L_CLIP, and ∂L_CLIP/∂ln π_i = r_i A_i / batch, which is exactly 0 where the clip is active.

    :param ratio: r, shape (batch,)
    :param advantages: A, shape (batch,)
    :param clip_range: ε
    :return: a scalar, and the slope of shape (batch,)
    """
    unclipped = ratio * advantages
    clipped = clip(ratio, 1 - clip_range, 1 + clip_range) * advantages
    slope = unclipped * (unclipped <= clipped) / len(ratio)
    return mean(namespace(ratio).minimum(unclipped, clipped)), slope


def value_loss(
    values: ArrayT,
    targets: ArrayT,
    old_values: ArrayT | None = None,
    clip_range_vf: float | None = None,
    clipping: ValueClipping = "clipped",
) -> Scalar:
    """
    P4: L_VF = E[(V(s) − G)²], optionally with V held within ``clip_range_vf`` of its old value.

    :param values: V(s), shape (batch,)
    :param targets: G, shape (batch,)
    :param old_values: V_old(s), shape (batch,); needed with ``clip_range_vf``
    :param clip_range_vf: bound on |V − V_old|, in units of the return; None for no clipping
    :param clipping: "clipped" takes the error of the clipped value alone, as SB3 does (its gradient vanishes outside
        the bound); "pessimistic" takes the larger of the clipped and the unclipped error, so that a value that strayed
        can return
    :return: a scalar
    """
    errors = (values - targets) ** 2
    if clip_range_vf is None or old_values is None:
        return mean(errors)
    xp = namespace(values)
    clipped_errors = (old_values + clip(values - old_values, -clip_range_vf, clip_range_vf) - targets) ** 2
    return mean(clipped_errors if clipping == "clipped" else xp.maximum(errors, clipped_errors))


def value_loss_and_slope(
    values: ArrayT,
    targets: ArrayT,
    old_values: ArrayT | None = None,
    clip_range_vf: float | None = None,
    clipping: ValueClipping = "clipped",
) -> tuple[Scalar, ArrayT]:
    """
    P4: L_VF, and ∂L_VF/∂V_i = 2 (V_i − G_i) / batch; under clipping 0 where the clipped error counts and the clip is active.

    The arguments are those of :func:`value_loss`.

    :return: a scalar, and the slope of shape (batch,)
    """
    difference = values - targets
    slope = (2 / len(values)) * difference
    if clip_range_vf is None or old_values is None:
        return difference.dot(difference) / len(values), slope
    loss = value_loss(values, targets, old_values, clip_range_vf, clipping)
    inside = abs(values - old_values) <= clip_range_vf
    if clipping == "clipped":
        return loss, slope * inside
    clipped = old_values + clip(values - old_values, -clip_range_vf, clip_range_vf)
    return loss, slope * (inside | (difference**2 > (clipped - targets) ** 2))


def combined_loss(policy_objective: Scalar, entropy: Scalar, value_error: Scalar, ent_coef: float, vf_coef: float) -> Scalar:
    """
    P5: −L = −(L_CLIP + c₁ L_ENT − c₂ L_VF), to be minimised.

    :param policy_objective: L_CLIP, a scalar
    :param entropy: L_ENT, a scalar in nats
    :param value_error: L_VF, a scalar
    :param ent_coef: c₁
    :param vf_coef: c₂
    :return: a scalar
    """
    return -(policy_objective + ent_coef * entropy - vf_coef * value_error)


def effective_sample_size(ratio: ArrayT) -> Scalar:
    """
    Kish's effective sample size of importance weights as a fraction of the batch: (Σr)² / (n Σr²), in (0, 1].

    :param ratio: r, shape (batch,)
    :return: a scalar
    """
    return mean(ratio) ** 2 / (ratio.dot(ratio) / len(ratio))


def ratio_diagnostics(log_ratios: ArrayT, ratio: ArrayT, clip_range: float) -> Terms:
    """
    Measures of the distance to the policy that collected a minibatch, from its ratios.

    The approximate KL is Schulman's estimator of KL(π_old‖π_θ) from samples of π_old, E[(r − 1) − ln r] in nats: never
    negative but for rounding.

    :param log_ratios: ln r, shape (batch,)
    :param ratio: r, shape (batch,)
    :param clip_range: ε
    :return: approximate KL, fraction of ratios outside the clip, largest ratio, effective sample size
    """
    deviation = ratio - 1
    return {
        "approx_kl": mean(deviation - log_ratios),
        "clip_fraction": fraction(abs(deviation) > clip_range),
        "ratio_max": Maximum(largest(ratio)),
        "effective_sample_size": effective_sample_size(ratio),
    }


def _variances(*arrays: NumpyArray) -> list[float]:
    return [float(np.var(array)) for array in arrays]


def explained_variance(
    predictions: NumpyArray, targets: NumpyArray, variances: Callable[..., list[float]] = _variances
) -> float:
    """
    1 − Var[G − V] / Var[G]: 1 for a perfect critic, 0 for one that predicts a constant, NaN for constant targets.

    :param predictions: V, any shape
    :param targets: G, the same shape
    :param variances: how to measure those of several arrays; over more data than these, for example
    :return: the fraction of the targets' variance that the values explain
    """
    of_residuals, of_targets = variances(targets - predictions, targets)
    return float("nan") if of_targets == 0 else 1.0 - of_residuals / of_targets
