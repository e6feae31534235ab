"""An environment that raises an error for a forbidden action; importing this module registers it."""

from typing import Any

import gymnasium as gym

from sb3_policyopt.envs.maskable import MaskedRoute


class StrictRoute(MaskedRoute):
    """A way that ends with an error when a cell is named that may not be."""

    def step(self, action: Any) -> Any:
        assert self.action_masks()[int(action)], "a forbidden action"
        return super().step(action)


if "StrictRoute-v0" not in gym.registry:
    gym.register("StrictRoute-v0", entry_point="strict_route:StrictRoute", max_episode_steps=30, kwargs={"side": 4})
