"""Rules about the policy's updates: their size, and the entropy of the policy."""

import numpy as np
import pandas as pd

from sb3_policyopt.doctor.rule import (
    Finding,
    Settings,
    as_numbers,
    latter_half,
    rule,
    step_of_maximum,
    succeeded,
    values,
)

_LARGE_KL = 0.1
_RUNAWAY_KL = 1.0
_SMALLER_STEPS = (
    "Lower learning_rate or n_epochs, raise batch_size, set target_kl=0.03, which ends an update early, or pass the callback "
    "sb3_policyopt.callbacks.AdaptiveLearningRate, which lowers the rate."
)


@rule(columns=("train/approx_kl",))
def exploding_kl(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """One update changes PPO's policy so much that the rollout is not representative of the new one."""
    kl = values(log, "train/approx_kl")
    large = int((kl > _LARGE_KL).sum())
    runaway = kl.max() > _RUNAWAY_KL or np.median(kl) > _LARGE_KL
    if not runaway and not (large >= 2 and large > 0.05 * len(kl)):
        return None
    return Finding(
        "error" if runaway else "warning",
        "Updates change the policy too much at once: the KL divergence between old and new policy explodes.",
        f"train/approx_kl was above {_LARGE_KL} in {large} of {len(kl)} updates; median {np.median(kl):.3g}, largest "
        f"{kl.max():.3g} at step {step_of_maximum(log, 'train/approx_kl')}.",
        _SMALLER_STEPS,
        "Usual values of target_kl are 0.01 to 0.05 (Spinning Up, PPO); ten times that leaves the region in which the "
        "clipped objective of PPO (arXiv 1707.06347) bounds the true one.",
    )


def _clip_fractions(log: pd.DataFrame) -> np.ndarray:
    """
    The fractions of clipped samples where there was a clip range. One that falls to 0 is not positive at the end, also as the
    last rollout may end after the last step; all samples are outside of it then.

    :param log: the log
    :return: shape [updates]
    """
    fractions, clip_range = as_numbers(log, "train/clip_fraction"), as_numbers(log, "train/clip_range")
    counted: np.ndarray = fractions[np.isfinite(fractions) & ~(clip_range <= 0)].to_numpy(dtype=float)
    return counted


@rule(columns=("train/clip_fraction",))
def clipped_away(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """Most samples are outside the clip range."""
    fractions = _clip_fractions(log)
    median = float(np.median(latter_half(fractions))) if len(fractions) >= 3 else 0.0
    if median <= 0.5:
        return None
    return Finding(
        "warning",
        "Most samples are clipped, and a clipped sample that would go further has no gradient.",
        f"The median of train/clip_fraction over the second half of the run is {median:.2f}.",
        _SMALLER_STEPS,
        "The gradient of the clipped objective is exactly zero where the clip is active (PPO, arXiv 1707.06347, eq. 7).",
    )


@rule(columns=("train/approx_kl",))
def policy_stands_still(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """The policy hardly changes although it is being trained."""
    kl, clipped = values(log, "train/approx_kl"), _clip_fractions(log)
    # The largest, not the median: a policy that has solved its task may be constant afterwards.
    idle = len(kl) >= 3 and np.abs(kl).max() < 1e-4 and np.max(clipped, initial=0.0) < 1e-3
    if not idle or np.max(values(log, "train/learning_rate"), initial=0.0) == 0:
        return None
    return Finding(
        "warning",
        "The updates hardly change the policy.",
        f"The largest train/approx_kl of {len(kl)} updates is {np.abs(kl).max():.2g}, and no sample reached the clip range.",
        "Raise learning_rate or n_epochs. If max_grad_norm is small and value_loss large, lower vf_coef or normalise the "
        "rewards.",
        "Usual values of target_kl are 0.01 to 0.05 (Spinning Up, PPO): this run stays a hundred times below.",
    )


@rule(columns=("train/ratio_max",))
def largest_ratio(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """Some actions became many times more probable within one update."""
    ratio = values(log, "train/ratio_max")
    median, largest = float(np.median(ratio)), float(ratio.max())
    if median <= 10 and largest <= 1000:
        return None
    return Finding(
        "error" if largest > 1e6 else "warning",
        "Within one update some actions become many times more probable than they were.",
        f"train/ratio_max has a median of {median:.3g} and reached {largest:.3g} at step "
        f"{step_of_maximum(log, 'train/ratio_max')}.",
        _SMALLER_STEPS + " If train/std is falling too, bound it below or start with a larger log_std_init.",
        "With a negative advantage the clipped objective does not bound the ratio from above (dual-clip PPO, arXiv "
        "1912.09729).",
    )


@rule(columns=("train/effective_sample_size",))
def few_effective_samples(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """The importance weights of most samples are close to zero."""
    size = values(log, "train/effective_sample_size")
    median = float(np.median(size))
    if median >= 0.5:
        return None
    return Finding(
        "error" if median < 0.1 else "warning",
        "The gradient depends on a small part of the rollout: the probability ratios are very uneven.",
        f"The median of train/effective_sample_size is {median:.2f} of the batch (1 is best), the smallest {size.min():.2g}.",
        _SMALLER_STEPS,
        "Effective sample size of importance weights, (Σr)² / (n Σr²) (Kong 1992; Owen, Monte Carlo theory, ch. 9).",
    )


@rule(columns=("train/entropy_loss",))
def dead_entropy(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """A policy over discrete actions became deterministic before the return rose."""
    entropy = -values(log, "train/entropy_loss")
    continuous = len(values(log, "train/std")) > 0  # a differential entropy may be of either sign: see vanishing_std
    if continuous or len(entropy) < 5 or succeeded(log, settings):
        return None
    end = float(np.median(entropy[-max(1, len(entropy) // 10) :]))
    smallest = 0.0 if settings.get("masks") else 0.01  # where masks allow one action, there is nothing to explore
    if end > max(smallest, 0.05 * entropy.max()):
        return None
    return Finding(
        "error",
        "The policy has stopped exploring without having learnt the task.",
        f"Its entropy, once {entropy.max():.3g} nats, ended at {end:.2g}, and the return did not rise with it.",
        "Raise ent_coef (0.01 is usual on Atari), lower learning_rate, check that the reward does not favour a do-nothing "
        "action.",
        "Entropy bonus against premature convergence (A3C, arXiv 1602.01783, sec. 4; PPO, arXiv 1707.06347, eq. 9).",
    )


@rule(columns=("train/std", "train/std_min"))
def vanishing_std(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """A Gaussian policy became deterministic."""
    column = "train/std_min" if len(values(log, "train/std_min")) else "train/std"
    std = values(log, column)
    numerical, fallen = std[-1] < 1e-3, std[-1] < 0.05 * std[0]
    if not numerical and not (fallen and not succeeded(log, settings)):
        return None
    return Finding(
        "error" if numerical else "warning",
        "The standard deviation of the actions is close to zero.",
        f"{column} went from {std[0]:.3g} to {std[-1]:.3g}.",
        "Raise ent_coef, lower learning_rate, or bound log_std below. The policy's gradient grows like 1/std, so that the "
        "next updates tend to explode.",
        "∂ ln N(a; μ, σ) / ∂μ = (a − μ)/σ², of size 1/σ; reports of such runs ending in NaN: stable-baselines3 #1593.",
    )


@rule(columns=("train/std",))
def exploding_std(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """The standard deviation of a Gaussian policy is larger than the action space."""
    std = values(log, "train/std")
    if std[-1] <= max(3.0, 3.0 * std[0]):
        return None
    return Finding(
        "warning",
        "The standard deviation of the actions grows without bound.",
        f"train/std went from {std[0]:.3g} to {std[-1]:.3g}; actions are clipped to the action space, usually [-1, 1].",
        "Lower ent_coef. Check that actions matter for the reward, and that the action space is scaled to [-1, 1].",
        "The policy is trained on the action before clipping, so that noise outside the bounds has no cost "
        "(Stable-Baselines3, Tips and Tricks: normalise the action space).",
    )
