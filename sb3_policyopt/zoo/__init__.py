"""
rl-zoo3 with this package's algorithms: importing this module registers them as ``ppo`` and ``trpo``.

So ``python -m rl_zoo3.train --algo trpo --gym-packages sb3_policyopt.zoo`` trains ours, and so does
``sb3-policyopt train --algo trpo``. The other algorithms of the zoo stay what they are.
"""

from sb3_policyopt.zoo.registration import register

register()

__all__ = ["register"]
