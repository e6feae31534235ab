"""Rules from trainings on MuJoCo (docs/scores.md): the first standard deviation, and seeds that ended in a low mode."""

import math

import pandas as pd

from sb3_policyopt.doctor.rule import Finding, Settings, latter_half, number, rule, succeeded, values, was_trained_before
from sb3_policyopt.plots.runs import STEPS

WIDEST, NARROWEST = 0.9, 0.1
"""Standard deviations, in half-ranges of the action, beyond which the first one is remarked on."""

LOW_MODES: dict[str, tuple[float, float]] = {
    "HalfCheetah": (800.0, 3000.0),
    "Hopper": (200.0, 1500.0),
    "Walker2d": (200.0, 2500.0),
    "Swimmer": (10.0, 200.0),
}
"""
By the name of a MuJoCo environment, returns between which seeds of the same entry stay for good: on its back (HalfCheetah),
standing or falling after a hop (Hopper, Walker2d), with one stroke (Swimmer). The seeds are in docs/scores.md. These are
returns of training, which the noise of the actions lowers.
"""


def in_low_mode(log: pd.DataFrame, settings: Settings) -> tuple[float, float, float] | None:
    """
    Whether the return has settled where seeds are known to stay.

    :param log: the log
    :param settings: with the name of the environment
    :return: the last return, its rise in the second half, and what other seeds get beyond; None if it has not
    """
    bounds = LOW_MODES.get(str(settings.get("env", "")).partition("-v")[0])
    returns = values(log, "rollout/ep_rew_mean")
    if bounds is None or len(returns) < 20 or log[STEPS].max() < 300_000:
        return None
    late = latter_half(returns)
    end = float(late[-len(late) // 4 :].mean())
    rise = end - float(late[: len(late) // 4].mean())
    return (end, rise, bounds[1]) if bounds[0] <= end <= bounds[1] and rise <= 0.15 * end else None


@rule(columns=("train/std",), settings=("action_half_range",))
def unfitting_std(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """The first standard deviation is far from half of an action's half-range, and the return has not risen or is stuck."""
    half_range = number(settings, "action_half_range")
    # gSDE's train/std is a factor of the standard deviation, which depends on the state.
    if not half_range or was_trained_before(log, settings) or settings.get("use_sde"):
        return None
    if succeeded(log, settings) and in_low_mode(log, settings) is None:
        return None
    ratio = float(values(log, "train/std")[0]) / half_range
    if NARROWEST <= ratio <= WIDEST:
        return None
    # Beyond the bounds, for a mean in the middle: P(|N(0, ratio)| > 1) = erfc(1 / (ratio √2)).
    clipped = math.erfc(1 / (ratio * math.sqrt(2)))
    much = f"About {clipped:.0%} of them are clipped to the bounds" if ratio > WIDEST else "The first actions differ little"
    return Finding(
        "warning",
        "The first standard deviation of the actions does not suit their range.",
        f"It was {ratio:.2g} half-ranges of the action (one is {half_range:.3g}). {much}.",
        "Set policy_kwargs=dict(log_std_init=x) with e^x about half of a half-range: -0.7 for actions in [-1, 1].",
        "docs/scores.md: the entries of HalfCheetah-v5 with a first standard deviation of half of a half-range.",
    )


@rule(columns=("rollout/ep_rew_mean",), settings=("env",))
def low_mode(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """The return stays where seeds of this environment are known to stay although others of the same entry go on."""
    found = in_low_mode(log, settings)
    if found is None:
        return None
    end, rise, beyond = found
    return Finding(
        "warning",
        "The return has settled in a mode in which seeds of this environment are known to stay.",
        f"It ended at {end:,.0f} and rose by {rise:,.0f} in the second half of the run; other seeds get beyond {beyond:,.0f}.",
        "Try another seed. Judge an entry by several seeds.",
        "docs/scores.md: the same entry ends in one of two gaits, so that every seed is listed.",
    )
