"""Callbacks: checkpoints from which a killed run continues to the same final bits, evaluations, records of a run, a rate."""

from sb3_policyopt.callbacks.adaptive_rate import AdaptiveLearningRate
from sb3_policyopt.callbacks.evaluation import EvalCallback
from sb3_policyopt.callbacks.resumable import ResumableCheckpointCallback
from sb3_policyopt.callbacks.run_recorder import RunRecorder

__all__ = ["AdaptiveLearningRate", "EvalCallback", "ResumableCheckpointCallback", "RunRecorder"]
