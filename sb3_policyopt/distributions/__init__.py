"""S2, T5, P3: the families of action distributions, one file each, and which of SB3's classes is which family."""

from sb3_policyopt.distributions.bernoulli import Bernoulli
from sb3_policyopt.distributions.categorical import Categorical
from sb3_policyopt.distributions.family import ActionDistribution, Evaluation, Sampler
from sb3_policyopt.distributions.gaussian import DiagonalGaussian
from sb3_policyopt.distributions.multi_categorical import MultiCategorical
from sb3_policyopt.distributions.table import FAMILIES, family_of

__all__ = [
    "FAMILIES",
    "ActionDistribution",
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "Evaluation",
    "MultiCategorical",
    "Sampler",
    "family_of",
]
