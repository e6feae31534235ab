"""Environments whose observations, rewards and flags are tensors on a device. Importing this module imports no simulator."""

from sb3_policyopt.envs.tensors.cartpole import TensorCartPole
from sb3_policyopt.envs.tensors.normalize import TensorVecNormalize
from sb3_policyopt.envs.tensors.pendulum import TensorPendulum
from sb3_policyopt.envs.tensors.vec_env import TensorStep, TensorVecEnv, is_tensor_env

__all__ = ["TensorCartPole", "TensorPendulum", "TensorStep", "TensorVecEnv", "TensorVecNormalize", "is_tensor_env"]
