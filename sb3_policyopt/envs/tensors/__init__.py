"""Environments whose observations, rewards and flags are tensors on a device. Importing this module imports no simulator."""

from sb3_policyopt.envs.tensors.cartpole import TensorCartPole
from sb3_policyopt.envs.tensors.gymnasium_vector import from_gymnasium_vector
from sb3_policyopt.envs.tensors.isaaclab import from_isaaclab
from sb3_policyopt.envs.tensors.jax_env import from_jax
from sb3_policyopt.envs.tensors.normalize import TensorVecNormalize
from sb3_policyopt.envs.tensors.pendulum import TensorPendulum
from sb3_policyopt.envs.tensors.rsl_rl import from_rsl_rl
from sb3_policyopt.envs.tensors.vec_env import TensorStep, TensorVecEnv, is_tensor_env

__all__ = [
    "TensorCartPole",
    "TensorPendulum",
    "TensorStep",
    "TensorVecEnv",
    "TensorVecNormalize",
    "from_gymnasium_vector",
    "from_isaaclab",
    "from_jax",
    "from_rsl_rl",
    "is_tensor_env",
]
