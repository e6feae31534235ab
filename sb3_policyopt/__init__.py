"""TRPO and PPO for Stable-Baselines3: the same results, several times faster, with a trust region that is truly one."""

from importlib.metadata import PackageNotFoundError, version

from sb3_policyopt.errors import NonFiniteError
from sb3_policyopt.ppo import PPO
from sb3_policyopt.trpo import TRPO

try:
    __version__ = version("sb3-policyopt")
except PackageNotFoundError:  # a source tree on sys.path, not installed
    __version__ = "0.0.0"

__all__ = ["PPO", "TRPO", "NonFiniteError", "__version__"]
