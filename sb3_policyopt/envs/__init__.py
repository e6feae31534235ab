"""
Vectorised environments beyond SB3's own, and two environments with masks. Importing this module does not import EnvPool.

It registers ``MaskedRoute-v0`` and ``MaskedWorkshop-v0`` with Gymnasium (:mod:`sb3_policyopt.envs.maskable`).
"""

from sb3_policyopt.envs import maskable
from sb3_policyopt.envs.envpool import EnvPoolVecEnv, make_envpool
from sb3_policyopt.envs.envpool_zoo import envpool_vec_env
from sb3_policyopt.envs.shared import SharedMemoryVecEnv

maskable.register()

__all__ = ["EnvPoolVecEnv", "SharedMemoryVecEnv", "envpool_vec_env", "make_envpool"]
