"""Rules about TRPO's step: direction, length and the line search."""

import numpy as np
import pandas as pd

from sb3_policyopt.doctor.rule import Finding, Settings, as_numbers, number, rule, values
from sb3_policyopt.plots.outcomes import SUCCESS, line_search_outcomes

_KL, _BOUND, _PREDICTED = "train/kl_divergence_loss", "train/target_kl", "train/kl_predicted"
_IMPROVEMENT = "train/surrogate_improvement"
_LARGE_RESIDUAL = 0.3
_FITS_NOISE = 1.0
_CONSERVATIVE = "Lower target_kl, raise cg_damping, and collect more samples per update (n_steps, n_envs)."
_ADVICE = {
    "kl_exceeded": "The KL grows faster than its quadratic model: lower target_kl, raise cg_damping or line_search_max_iter.",
    "no_improvement": "The gradient is mostly noise: collect more samples per update (n_steps, n_envs), check the critic "
    "(train/explained_variance), lower target_kl.",
    "zero_step": "The gradient is zero: check that rewards differ between actions, and that advantages are not all equal.",
    "non_finite": "Some numbers overflow: normalise observations (VecNormalize), lower target_kl, raise log_std_init.",
}


def _steps(log: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The accepted steps: columns kl, bound, predicted (NaN where not logged)."""
    table = pd.DataFrame({"kl": as_numbers(log, _KL), "predicted": as_numbers(log, _PREDICTED)})
    constant = number(settings, "target_kl")
    table["bound"] = as_numbers(log, _BOUND) if _BOUND in log else np.nan if constant is None else constant
    return table[as_numbers(log, SUCCESS) > 0.5] if SUCCESS in log else table


@rule(columns=(SUCCESS,))
def steps_rejected(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """The line search rejects many steps; the rollout of a rejected step has no effect."""
    success = values(log, SUCCESS)
    rate = float(success.mean())
    if len(success) < 5 or rate >= 0.5:
        return None
    outcomes = line_search_outcomes(log)
    reasons = sorted(
        (word for word in outcomes if word not in ("accepted", "rejected")), key=outcomes.__getitem__, reverse=True
    )
    listed = "; ".join(f"{word.replace('_', ' ')}: {outcomes[word]:.3g}" for word in reasons)
    return Finding(
        "error" if rate < 0.1 else "warning",
        "The line search rejects most policy steps, so that most rollouts have no effect on the policy.",
        f"{int(success.sum())} of {len(success)} steps were accepted" + (f" ({listed})." if listed else "."),
        _ADVICE.get(reasons[0], _CONSERVATIVE) if reasons else _CONSERVATIVE,
        "Backtracking line search of TRPO (arXiv 1502.05477, app. C): a step is taken only if the KL is within the bound "
        "and the surrogate has improved.",
    )


@rule(columns=(_KL,))
def trust_region_left(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """Steps are longer than the bound allows, which is possible only with ``line_search=False``."""
    steps = _steps(log, settings).dropna(subset=["kl", "bound"])
    outside = steps["kl"] > 1.05 * steps["bound"]
    if len(steps) < 3 or outside.mean() <= 0.1:
        return None
    ratio = steps["kl"] / steps["bound"]
    return Finding(
        "error" if ratio.median() > 5 else "warning",
        "Policy steps exceed the trust region.",
        f"The true KL was above target_kl in {int(outside.sum())} of {len(steps)} steps; at worst {ratio.max():.3g} times.",
        "Keep line_search=True. Without it lower target_kl until the quadratic model is accurate.",
        "The KL constraint of TRPO (arXiv 1502.05477, eq. 14).",
    )


@rule(columns=(_KL,))
def trust_region_unused(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """Accepted steps are far shorter than the bound allows."""
    steps = _steps(log, settings).dropna(subset=["kl", "bound"])
    ratio = (steps["kl"] / steps["bound"].where(steps["bound"] > 0)).dropna()
    if len(ratio) < 5 or ratio.median() >= 0.1:
        return None
    return Finding(
        "warning",
        "Accepted steps are far shorter than target_kl allows.",
        f"The median of KL / target_kl over {len(ratio)} accepted steps is {ratio.median():.2g}.",
        "The line search has to shorten every step (train/step_fraction): lower sub_sampling_factor, collect more samples "
        "per update (n_steps, n_envs), or lower target_kl, until full steps are accepted.",
        "The optimum of TRPO's problem is on the border of the trust region (arXiv 1502.05477, app. C: the step is scaled "
        "to it).",
    )


@rule(columns=(_PREDICTED,))
def kl_model_off(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """The quadratic model of the KL is inaccurate for the steps taken."""
    steps = _steps(log, settings).dropna(subset=["kl", "predicted"])
    ratio = steps["kl"] / steps["predicted"].where(steps["predicted"] > 0)
    ratio = ratio[ratio > 0]
    factor = float(np.exp(np.log(ratio).abs().median()))  # too small or too large, either way
    if len(ratio) < 5 or not factor > 3:
        return None
    return Finding(
        "warning",
        "The KL of the steps is not what its quadratic model predicts.",
        f"In {len(ratio)} accepted steps the true KL was {ratio.min():.2g} to {ratio.max():.2g} times the predicted one, "
        f"typically off by a factor of {factor:.2g}.",
        _CONSERVATIVE + " With sub_sampling_factor > 1 lower it: the curvature is then estimated from too few samples.",
        "½ΔᵀFΔ is the second-order expansion of the KL (TRPO, arXiv 1502.05477, app. C); where it fails, so does the "
        "direction F⁻¹g.",
    )


@rule(columns=("train/cg_residual",))
def cg_not_converging(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """Conjugate gradient stops far from the natural gradient."""
    residual, iterations = values(log, "train/cg_residual"), values(log, "train/cg_iterations")
    median = float(np.median(residual))
    if len(residual) < 3 or median <= _LARGE_RESIDUAL:
        return None
    used = f" after {np.median(iterations):.3g} iterations" if len(iterations) else ""
    return Finding(
        "error" if median >= 1 else "warning",
        "Conjugate gradient does not converge: the step is not along the natural gradient.",
        f"The median of the relative residual ‖g − Fx‖/‖g‖ is {median:.2g}{used}; 0 is exact, 1 is no progress.",
        "Raise cg_damping (0.1 is the default), then cg_max_steps; lower sub_sampling_factor.",
        "CG's error shrinks by (√κ − 1)/(√κ + 1) per iteration, κ being the condition number, which damping bounds "
        "(Shewchuk 1994, sec. 9; TRPO, arXiv 1502.05477, app. C).",
    )


@rule(columns=(_IMPROVEMENT,))
def step_fits_noise(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """
    Steps promise more than any step of their length can keep.

    Of advantages with the standard deviation 1, E[(r − 1) A] ≤ √E[(r − 1)²] by Cauchy and Schwarz, and E[(r − 1)²] ≈ 2 KL for
    short steps. A mean over the rollout that is above √(2 KL) belongs to the sampled actions, not to their distribution.
    """
    if settings.get("normalize_advantage") is False or settings.get("kl_reduction") == "mean":
        return None  # the scale of one of the two is unknown
    steps = _steps(log, settings).assign(improvement=as_numbers(log, _IMPROVEMENT)).dropna(subset=["kl", "improvement"])
    steps = steps[steps["kl"] > 0]
    ratio = steps["improvement"] / np.sqrt(2 * steps["kl"])
    if len(ratio) < 5 or not ratio.median() > _FITS_NOISE:
        return None
    return Finding(
        "warning",
        "Steps of the policy fit the noise of the sampled actions: they promise more than a step of their length can keep.",
        f"The median of train/surrogate_improvement / √(2 KL) over {len(ratio)} accepted steps is {ratio.median():.3g}; what "
        "new samples confirm is at most 1.",
        "Raise cg_damping (1 to 10 in place of 0.1), and collect more samples per update (n_steps, n_envs). Both made "
        "TRPO learn Humanoid-v5.",
        "Cauchy-Schwarz on E[(r − 1) A], with E[(r − 1)²] ≈ 2 KL; scores of Humanoid-v5 in docs/scores.md.",
    )
