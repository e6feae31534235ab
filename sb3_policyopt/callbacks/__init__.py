"""Callbacks: checkpoints from which a killed run continues to the same final bits, and records of a run."""

from sb3_policyopt.callbacks.resumable import ResumableCheckpointCallback
from sb3_policyopt.callbacks.run_recorder import RunRecorder

__all__ = ["ResumableCheckpointCallback", "RunRecorder"]
