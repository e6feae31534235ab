"""
rl-zoo3 with this package's algorithms: importing this module registers them under their names.

They are ``ppo`` and ``trpo``, with memory ``ppo_lstm`` and ``trpo_lstm``, with masks ``ppo_mask`` and ``trpo_mask``.

Then ``python -m rl_zoo3.train --algo trpo --gym-packages sb3_policyopt.zoo`` trains this package's TRPO, and so does
``sb3-policyopt train --algo trpo``. The other algorithms of rl-zoo3 are unchanged.
"""

from sb3_policyopt.zoo.registration import register

register()

__all__ = ["register"]
