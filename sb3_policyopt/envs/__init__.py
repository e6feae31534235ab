"""Vectorised environments beyond SB3's own. Importing this module does not import EnvPool."""

from sb3_policyopt.envs.envpool import EnvPoolVecEnv, make_envpool
from sb3_policyopt.envs.envpool_zoo import envpool_vec_env
from sb3_policyopt.envs.shared import SharedMemoryVecEnv

__all__ = ["EnvPoolVecEnv", "SharedMemoryVecEnv", "envpool_vec_env", "make_envpool"]
