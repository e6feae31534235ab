"""Callbacks: checkpoints from which a killed run goes on to the same bits, evaluations, records, rates, staggered episodes."""

from sb3_policyopt.callbacks.adaptive_rate import AdaptiveLearningRate
from sb3_policyopt.callbacks.evaluation import EvalCallback
from sb3_policyopt.callbacks.resumable import ResumableCheckpointCallback
from sb3_policyopt.callbacks.run_recorder import RunRecorder
from sb3_policyopt.callbacks.staggered_resets import StaggeredResets

__all__ = ["AdaptiveLearningRate", "EvalCallback", "ResumableCheckpointCallback", "RunRecorder", "StaggeredResets"]
