"""Environments in worker processes that share memory with the trainer."""

from sb3_policyopt.envs.shared.vec_env import SharedMemoryVecEnv

__all__ = ["SharedMemoryVecEnv"]
