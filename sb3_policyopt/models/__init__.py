"""How a policy's outputs, J and Jᵀ are computed: torch (any policy), closed form (MlpPolicy), hybrid; and which one serves."""

from sb3_policyopt.models.choice import choose_model, with_whole_actor
from sb3_policyopt.models.model import AnyModel, Decision, Model

__all__ = ["AnyModel", "Decision", "Model", "choose_model", "with_whole_actor"]
