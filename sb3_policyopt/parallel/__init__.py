"""
Several processes (torchrun) that train one model, each with its own environments.

An algorithm has a :class:`Team`, which is one process by itself, or all ranks of a launcher. Nothing else of the package
depends on the number of processes.
"""

from sb3_policyopt.parallel.ranks import Ranks, current_team
from sb3_policyopt.parallel.team import Team

__all__ = ["Ranks", "Team", "current_team"]
