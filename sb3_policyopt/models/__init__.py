"""How the numbers of TRPO and PPO are computed, behind one small interface."""

from sb3_policyopt.models.choice import choose_engine
from sb3_policyopt.models.model import Batch, Engine, PPOCoefficients, Terms, has_closed_form, in_closed_form

__all__ = ["Batch", "Engine", "PPOCoefficients", "Terms", "choose_engine", "has_closed_form", "in_closed_form"]
