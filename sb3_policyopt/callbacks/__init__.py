"""Callbacks: checkpoints from which a killed run continues to the same final bits, evaluations, and records of a run."""

from sb3_policyopt.callbacks.evaluation import EvalCallback
from sb3_policyopt.callbacks.resumable import ResumableCheckpointCallback
from sb3_policyopt.callbacks.run_recorder import RunRecorder

__all__ = ["EvalCallback", "ResumableCheckpointCallback", "RunRecorder"]
