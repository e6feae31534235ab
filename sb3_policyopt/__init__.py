"""TRPO and PPO for Stable-Baselines3: the same results, faster, with a bound on the KL that is enforced."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from sb3_policyopt.errors import NonFiniteError

if TYPE_CHECKING:
    from sb3_policyopt.maskable import MaskablePPO, MaskableTRPO
    from sb3_policyopt.ppo import PPO
    from sb3_policyopt.recurrent import RecurrentPPO, RecurrentTRPO
    from sb3_policyopt.trpo import TRPO

try:
    __version__ = version("sb3-policyopt")
except PackageNotFoundError:  # a source tree on sys.path, not installed
    __version__ = "0.0.0"

__all__ = [
    "PPO",
    "TRPO",
    "MaskablePPO",
    "MaskableTRPO",
    "NonFiniteError",
    "RecurrentPPO",
    "RecurrentTRPO",
    "__version__",
]

_MODULES = {
    "PPO": "ppo",
    "TRPO": "trpo",
    "MaskablePPO": "maskable",
    "MaskableTRPO": "maskable",
    "RecurrentPPO": "recurrent",
    "RecurrentTRPO": "recurrent",
}


def __getattr__(name: str) -> Any:
    """Import the algorithms, and torch with them, when they are first asked for: the command line answers --help without."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"sb3_policyopt.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
