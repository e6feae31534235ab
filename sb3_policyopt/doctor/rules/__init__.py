"""All rules."""

from sb3_policyopt.doctor.rule import Rule
from sb3_policyopt.doctor.rules.critic import exploding_gradient, reward_scale, useless_critic
from sb3_policyopt.doctor.rules.policy import (
    clipped_away,
    dead_entropy,
    exploding_kl,
    exploding_std,
    few_effective_samples,
    largest_ratio,
    policy_stands_still,
    vanishing_std,
)
from sb3_policyopt.doctor.rules.setup import (
    no_episode,
    nonfinite_metrics,
    return_collapsed,
    skipped_updates,
    stopped_early,
    truncated_minibatch,
    zero_coefficient,
)
from sb3_policyopt.doctor.rules.trust_region import (
    cg_not_converging,
    kl_model_off,
    steps_rejected,
    trust_region_left,
    trust_region_unused,
)

RULES: dict[str, list[Rule]] = {
    "common": [
        nonfinite_metrics,
        skipped_updates,
        stopped_early,
        zero_coefficient,
        return_collapsed,
        no_episode,
        vanishing_std,
        exploding_std,
        useless_critic,
        reward_scale,
        exploding_gradient,
        truncated_minibatch,
    ],
    "ppo": [exploding_kl, clipped_away, policy_stands_still, largest_ratio, few_effective_samples, dead_entropy],
    "trpo": [steps_rejected, trust_region_left, trust_region_unused, kl_model_off, cg_not_converging],
}
"""By algorithm; within each, what spoils a run comes before what merely slows it."""

__all__ = ["RULES"]
