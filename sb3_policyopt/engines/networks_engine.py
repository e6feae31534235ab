"""What the engines with networks in closed form share: noise, threads, and a step that never leaves NumPy."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sb3_policyopt.engines.engine import Engine, Terms
from sb3_policyopt.engines.networks import ActorCriticNetworks


class NetworksEngine(Engine):
    """An engine with :class:`ActorCriticNetworks`, see the module's text."""

    networks: ActorCriticNetworks

    def start_rollout(self, n_steps: int, n_envs: int) -> None:
        """Draw the noise of all steps at once, from torch's global generator."""
        self.networks.start_rollout(n_steps, n_envs)

    @contextmanager
    def updating(self, batch_size: int, critic_only: bool = False) -> Iterator[None]:
        """As the base class, with threads that suit the networks' minibatches."""
        with self.networks.threads(batch_size), super().updating(batch_size, critic_only):
            self._stepped = self._stepped_gradient.numpy()
            yield

    def step(self, max_norm: float, loss: Any) -> Terms:
        """As the base class; on the CPU nothing has to be waited for."""
        gradient = self._stepped
        norm = math.sqrt(gradient.dot(gradient))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            return {"grad_norm": norm, "skipped_updates": 1.0}
        if norm + 1e-6 > max_norm:
            gradient *= max_norm / (norm + 1e-6)
        if self._fused is not None:
            self._fused.step()
        else:
            self.policy.optimizer.step()
        return {"grad_norm": norm, "skipped_updates": 0.0}
