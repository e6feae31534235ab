"""What is optimised: the clipped objective, the surrogate with its trust region, the value loss."""

from sb3_policyopt.maths.terms import Count, Maximum, Terms
from sb3_policyopt.objectives.clipped import PPOCoefficients, clipped_loss, clipped_slopes
from sb3_policyopt.objectives.objective import Objective, closed_form, slopes_of
from sb3_policyopt.objectives.outputs import Outputs, Slopes
from sb3_policyopt.objectives.trust_region import LocalTrustRegion, TrustRegion, surrogate_slopes
from sb3_policyopt.objectives.value import critic_loss, critic_slopes

__all__ = [
    "Count",
    "LocalTrustRegion",
    "Maximum",
    "Objective",
    "Outputs",
    "PPOCoefficients",
    "Slopes",
    "Terms",
    "TrustRegion",
    "clipped_loss",
    "clipped_slopes",
    "closed_form",
    "critic_loss",
    "critic_slopes",
    "slopes_of",
    "surrogate_slopes",
]
