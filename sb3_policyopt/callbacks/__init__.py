"""Callbacks for any run; ``ResumableCheckpointCallback`` lets a killed one go on as if nothing had happened."""

from sb3_policyopt.callbacks.resumable import ResumableCheckpointCallback

__all__ = ["ResumableCheckpointCallback"]
