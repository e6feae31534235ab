"""
What the ranks of a training share, so that they are one algorithm on the data of all.

The ranks run the same script, each with its own environments. Everything that is an average over transitions (gradients,
J, F v, KL, the moments of the advantages, metrics) becomes the average over the transitions of all ranks, and every
decision is made from such numbers, which have the same bits everywhere. Without a launcher every function here leaves
things as they are.
"""

from sb3_policyopt.parallel.callbacks import callbacks_of_this_rank
from sb3_policyopt.parallel.leader import led
from sb3_policyopt.parallel.minibatches import SharedGradient, in_step, normalize, reduce_maxima
from sb3_policyopt.parallel.one_model import keep_together, seed_of_this_rank, training
from sb3_policyopt.parallel.rollouts import SharedRollout, adopt_moments, variances

__all__ = [
    "SharedGradient",
    "SharedRollout",
    "adopt_moments",
    "callbacks_of_this_rank",
    "in_step",
    "keep_together",
    "led",
    "normalize",
    "reduce_maxima",
    "seed_of_this_rank",
    "training",
    "variances",
]
