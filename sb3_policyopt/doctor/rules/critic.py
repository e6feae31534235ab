"""Rules about the value function, and the scale of rewards and gradients."""

import numpy as np
import pandas as pd

from sb3_policyopt.doctor.rule import Finding, Settings, latter_half, number, rule, step_of_maximum, succeeded, values


@rule(columns=("train/explained_variance",))
def useless_critic(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """The value function predicts no better than a constant."""
    explained = values(log, "train/explained_variance")
    if len(explained) < 10 or succeeded(log, settings):
        return None
    median = float(np.median(latter_half(explained)))
    if median > 0.05:
        return None
    shared = number(settings, "shared_extractor_parameters") if "n_critic_updates" in settings else None
    own_extractor = (
        "Set policy_kwargs=dict(share_features_extractor=False): TRPO's critic trains only what it does not share with the "
        f"actor, and so none of the {shared:.0f} parameters of the features extractor that both use. "
        if shared
        else ""
    )
    return Finding(
        "warning",
        "The critic is no better than a constant, so the advantages are little more than noise.",
        f"The median of train/explained_variance over the second half of the run is {median:.2g} (1 is perfect, 0 is a "
        "constant, below 0 is worse than a constant).",
        f"{own_extractor}Normalise observations and rewards (VecNormalize), raise learning_rate, n_epochs (PPO) or "
        "n_critic_updates (TRPO), give the critic its own or a larger network, and check that the observation holds what "
        "the return depends on.",
        "Stable-Baselines3, explanation of logger output: explained_variance.",
    )


@rule(columns=("train/value_loss", "rollout/ep_rew_mean"))
def reward_scale(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """Rewards are too large or too small for a network with unit-sized outputs."""
    returns = np.abs(values(log, "rollout/ep_rew_mean"))
    loss = values(log, "train/value_loss")
    if _rewards_are_normalised(settings):
        return None
    error = max(float(np.median(loss)), 0.0) ** 0.5 if len(loss) else 0.0
    tiny = len(returns) > 0 and 0 < returns.max() < 0.01
    if error <= 100 and not tiny:
        return None
    evidence = (
        f"No return in the log is larger than {returns.max():.2g}."
        if tiny
        else f"The critic's typical error √value_loss has a median of {error:.3g}; the largest value_loss is {loss.max():.3g}."
    )
    return Finding(
        "warning",
        f"The scale of the rewards is unsuitable: {'far too small' if tiny else 'far too large'} for the critic.",
        evidence,
        "Wrap the environments in VecNormalize (in the zoo: normalize: true), or scale the reward so that returns are of "
        "order 1 to 10.",
        "Adam moves a weight by about learning_rate per step whatever the gradient, so the critic needs "
        "return/learning_rate steps to get there (arXiv 1412.6980, sec. 2.1); Stable-Baselines3, Tips and Tricks: "
        "normalisation.",
    )


def _rewards_are_normalised(settings: Settings) -> bool:
    """Whether the zoo's ``normalize`` covers rewards: true, or a dict (perhaps as text) without ``norm_reward: False``."""
    normalize = settings.get("normalize")
    if isinstance(normalize, dict):
        return bool(normalize.get("norm_reward", True))
    if isinstance(normalize, str):
        return "norm_reward" not in normalize or "'norm_reward': True" in normalize or "norm_reward=True" in normalize
    return bool(normalize)


@rule(columns=("train/grad_norm",))
def exploding_gradient(log: pd.DataFrame, settings: Settings) -> Finding | None:
    """Some gradients are far larger than the others."""
    norm = values(log, "train/grad_norm")
    median, largest = float(np.median(norm)), float(norm.max())
    if len(norm) < 5 or largest <= 100 * max(median, 0.1):
        return None
    # Once a task is solved the critic's gradient, and so the median, is nearly 0. An outlier differs from its neighbours too.
    at = int(np.argmax(norm))
    if largest <= 10 * float(np.median(norm[max(0, at - 3) : at + 4])):
        return None
    return Finding(
        "warning",
        "Some gradients are far larger than the others.",
        f"train/grad_norm has a median of {median:.3g} and reached {largest:.3g} at step "
        f"{step_of_maximum(log, 'train/grad_norm')}.",
        "Keep max_grad_norm (0.5 is the default), lower learning_rate, normalise observations and rewards (VecNormalize), "
        "and look for outliers in them at that step.",
        "Exploding gradients and clipping by norm: Pascanu et al. 2013 (arXiv 1211.5063).",
    )
