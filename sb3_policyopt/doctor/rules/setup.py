"""Rules about the whole run: its settings, skipped updates, its end."""

from collections import Counter

import numpy as np
import pandas as pd

from sb3_policyopt.doctor.rule import Finding, Settings, as_numbers, learning, number, rule, values
from sb3_policyopt.plots.runs import NONFINITE, STEPS


@rule(columns=(NONFINITE,))
def nonfinite_metrics(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """Losses or other metrics of the update are nan or infinite."""
    counts = Counter(name for names in log[NONFINITE] for name in str(names).split(",") if name.startswith("train/"))
    counts.pop("train/explained_variance", None)  # nan by definition where all returns are equal
    if not counts:
        return None
    first = log[log[NONFINITE].str.contains("|".join(counts), regex=True)][STEPS].iloc[0]
    return Finding(
        "error",
        "Metrics of the update are not finite: the parameters are probably not valid any more.",
        f"From step {int(first)} on: " + ", ".join(f"{name} in {count} rows" for name, count in counts.most_common(4)) + ".",
        "Lower learning_rate first. Then check observations and rewards (VecCheckNan), and normalise both (VecNormalize).",
        "Stable-Baselines3, Dealing with NaNs and infs; rl-baselines3-zoo #156 (learning rate too high).",
    )


@rule(columns=("train/skipped_updates",))
def skipped_updates(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """Minibatches were skipped because their loss or gradient was not finite."""
    skipped = values(log, "train/skipped_updates")
    affected = int((skipped > 0).sum())
    if affected == 0:
        return None
    return Finding(
        "error" if affected > 0.1 * len(skipped) else "warning",
        "Updates were skipped because a loss or a gradient was not finite.",
        f"train/skipped_updates was above zero in {affected} of {len(skipped)} rows, {skipped.max():.3g} at most.",
        "Lower learning_rate, normalise observations and rewards (VecNormalize), and check train/ratio_max and "
        "train/std_min before it.",
        "sb3-policyopt skips a minibatch whose gradient would write a nan into the parameters.",
    )


@rule(settings=("n_timesteps",))
def stopped_early(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """The run ended before the requested number of steps, and has logged nothing for ten minutes."""
    requested, done = number(settings, "n_timesteps"), float(log[STEPS].max()) if len(log) else 0.0
    if not requested:
        return None
    if settings.get("still_runs"):
        return None
    unfinished = settings.get("finished") is False
    if not unfinished and (settings.get("finished") is True or done >= 0.95 * requested):
        return None
    return Finding(
        "warning",
        "The run was stopped before its end.",
        f"The log ends at step {done:.0f} of {requested:.0f} ({done / requested:.0%})"
        + (", and its provenance file records that it is not finished." if unfinished else "."),
        "Check the end of its output for an error, and start it again from the last checkpoint.",
        "The number of steps in the run's own configuration.",
    )


@rule(columns=("train/learning_rate", "train/clip_range", "train/target_kl"))
def zero_coefficient(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """A coefficient is zero, so that the update is, too. A linear schedule may be zero in the last update."""
    names = ("learning_rate", "clip_range", "target_kl")
    zero = {name: int((values(log, f"train/{name}")[:-1] <= 0).sum()) for name in names}
    rows = {name: len(values(log, f"train/{name}")) for name in names}
    listed = [f"train/{name} was zero in {zero[name]} of {rows[name]} updates" for name in names if zero[name] > 1]
    if not listed:
        return None
    return Finding(
        "error",
        "A coefficient is zero, so that the update is zero, too.",
        "; ".join(listed) + ".",
        "Check the schedule: a linear one reaches zero at total_timesteps, so a continued run needs a new total or "
        "reset_num_timesteps.",
        "θ ← θ + learning_rate · direction; clip_range and target_kl bound the policy's change.",
    )


@rule(columns=("rollout/ep_rew_mean",))
def return_collapsed(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """The return rose and fell again."""
    course = learning(log)
    if course is None or not course.rose or course.kept:
        return None
    return Finding(
        "warning",
        "The return rose and fell again.",
        f"The return rose from {course.start:.4g} to {course.best:.4g} and ended at {course.end:.4g}.",
        "Use the best model of EvalCallback, use a falling learning_rate (lin_3e-4), lower clip_range or target_kl, raise "
        "batch_size.",
        "Performance collapse of PPO in long training: Dohare et al. 2023; Moalla et al. 2024 (arXiv 2405.00662).",
    )


@rule(columns=(STEPS,))
def no_episode(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """No return was logged."""
    if len(log) < 3 or any(len(values(log, name)) for name in ("rollout/ep_rew_mean", "eval/mean_reward")):
        return None
    return Finding(
        "warning",
        "No finished episode was logged, so it is unknown whether this run learns.",
        f"rollout/ep_rew_mean is missing in all {len(log)} rows, up to step {int(log[STEPS].max())}.",
        "Wrap the environments in Monitor (make_vec_env does it). If they are, the episodes do not end: add a time limit "
        "(gymnasium.make(..., max_episode_steps=...)).",
        "Stable-Baselines3 logs returns only of episodes that ended in an environment wrapped in Monitor.",
    )


@rule(settings=("batch_size",))
def truncated_minibatch(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """The last minibatch of each epoch is smaller than the others."""
    batch_size, rollout = int(number(settings, "batch_size") or 0), _rollout_size(log, settings)
    if not batch_size or not rollout or rollout <= batch_size or rollout % batch_size == 0:
        return None
    rest = rollout % batch_size
    return Finding(
        "warning",
        "The last minibatch of every epoch is truncated.",
        f"A rollout has {rollout} samples (n_steps × n_envs), which batch_size={batch_size} cuts into "
        f"{rollout // batch_size} minibatches and a rest of {rest}.",
        f"Choose a batch_size that divides {rollout}, e.g. {_nearest_divisor(rollout, batch_size)}.",
        "A small minibatch counts as much as a full one, with noisier normalised advantages (Stable-Baselines3 warns of "
        "it in PPO).",
    )


def _rollout_size(log: pd.DataFrame, settings: Settings) -> int:
    """Samples of one rollout, from the settings or else from the log: steps per iteration. 0 if unknown."""
    n_steps, n_envs = settings.get("n_steps"), settings.get("n_envs")
    if isinstance(n_steps, int) and isinstance(n_envs, int):
        return n_steps * n_envs
    rows = pd.DataFrame({"steps": log[STEPS], "iterations": as_numbers(log, "time/iterations")}).dropna()
    sizes = (rows["steps"].diff() / rows["iterations"].diff()).dropna().unique()
    return int(sizes[0]) if len(sizes) == 1 and float(sizes[0]).is_integer() else 0


def _nearest_divisor(total: int, target: int) -> int:
    divisors = [i for i in range(1, total + 1) if total % i == 0]
    return min(divisors, key=lambda i: abs(np.log(i / target)))
