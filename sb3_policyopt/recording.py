"""
What a run leaves besides its model: :class:`RunRecorder` writes it.

The public names of :mod:`sb3_policyopt.callbacks.run_recorder` and :mod:`sb3_policyopt.saving.provenance`.
"""

from sb3_policyopt.callbacks.run_recorder import RunRecorder
from sb3_policyopt.saving.provenance import (
    PROGRESS,
    PROVENANCE,
    ContinuedCSV,
    effective_hyperparameters,
    git_state,
    installed_versions,
)

__all__ = [
    "PROGRESS",
    "PROVENANCE",
    "ContinuedCSV",
    "RunRecorder",
    "effective_hyperparameters",
    "git_state",
    "installed_versions",
]
