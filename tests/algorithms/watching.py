"""A callback that compares what a model acts by with what the policy computes."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback


class WatchAndDisturb(BaseCallback):
    """Compares each step with the policy itself; then changes all parameters, as a callback may at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def _on_step(self) -> bool:
        observations, actions = self.locals["obs_tensor"], th.as_tensor(self.locals["actions"])
        with th.no_grad():
            policy: Any = self.model.policy
            values, log_prob, _ = policy.evaluate_actions(observations, actions)
            np.testing.assert_allclose(self.locals["values"], values, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(self.locals["log_probs"], log_prob, rtol=1e-4, atol=1e-4)
            for parameter in self.model.policy.parameters():
                parameter.data.add_(0.05 * th.randn_like(parameter))
        self.steps += 1
        return True
