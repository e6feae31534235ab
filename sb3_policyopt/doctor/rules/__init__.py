"""All rules."""

from collections.abc import Sequence
from typing import cast

from sb3_policyopt import registry
from sb3_policyopt.doctor.rule import Rule
from sb3_policyopt.doctor.rules.critic import exploding_gradient, reward_scale, useless_critic
from sb3_policyopt.doctor.rules.exploration import low_mode, unfitting_std
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
    step_fits_noise,
    steps_rejected,
    trust_region_left,
    trust_region_unused,
)

# In each tuple, rules about what makes a run useless come before rules about what slows it.
COMMON_RULES = (
    nonfinite_metrics,
    skipped_updates,
    stopped_early,
    zero_coefficient,
    return_collapsed,
    no_episode,
    vanishing_std,
    exploding_std,
    unfitting_std,
    low_mode,
    useless_critic,
    reward_scale,
    exploding_gradient,
    truncated_minibatch,
)
PPO_RULES = (exploding_kl, clipped_away, policy_stands_still, largest_ratio, few_effective_samples, dead_entropy)
TRPO_RULES = (steps_rejected, trust_region_left, trust_region_unused, kl_model_off, cg_not_converging, step_fits_noise)


def rules_of(algo: str) -> list[Rule]:
    """
    Look up the rules for the runs of an algorithm.

    :param algo: name of a registered algorithm; those of all algorithms apply to another name, and to ""
    :return: the common rules, then those of the algorithm, each once
    """
    names = [algo] if algo in registry.ALGORITHMS else list(registry.ALGORITHMS)
    own = [cast(Sequence[Rule], registry.resolve(registry.find(name).rules)) for name in names]
    return list(dict.fromkeys([*COMMON_RULES, *(rule for rules in own for rule in rules)]))


__all__ = ["COMMON_RULES", "PPO_RULES", "TRPO_RULES", "rules_of"]
