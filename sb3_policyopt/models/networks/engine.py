"""What the engines with networks in closed form share: when they fit, noise, threads, and a step that never leaves NumPy."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_policyopt.identity.originals import POLICY_METHODS
from sb3_policyopt.identity.structure import Structure
from sb3_policyopt.models.model import Engine, Terms
from sb3_policyopt.models.networks.actor_critic import ActorCriticNetworks
from sb3_policyopt.models.networks.sb3_layout import constants_of


class NetworksEngine(Engine):
    """An engine with :class:`ActorCriticNetworks`, see the module's text."""

    networks: ActorCriticNetworks

    def _read_off(self, policy: ActorCriticPolicy, *extractors: nn.Module) -> None:
        """
        Keep what :meth:`fits` and :meth:`serves` compare with.

        :param policy: whose networks are computed
        :param extractors: features extractors that are computed without torch
        """
        self.networks = ActorCriticNetworks(policy, self.flat)
        mlp = policy.mlp_extractor
        chains = [module for part in (mlp.policy_net, mlp.value_net) for module in part.modules()]
        plain = [*chains, policy.action_net, policy.value_net, *(m for part in extractors for m in part.modules())]
        self._networks_structure = Structure(
            [
                (policy, POLICY_METHODS),
                (mlp, ("forward", "forward_actor", "forward_critic")),
                *((module, ("forward",)) for module in plain),
            ]
        )
        self._constants = constants_of(policy)

    def _networks_serve(self) -> bool:
        """
        Whether the networks compute what the policy's do; for :meth:`serves`.

        :return: False once modules or parameters, the activations' constants, the spaces or the distribution are others
        """
        return self.fits() and self.flat.is_of_same_kind() and constants_of(self.policy) == self._constants

    def fits(self, thorough: bool = True) -> bool:
        """The networks' modules and parameters are the same objects, without hooks or methods of their own."""
        return self.flat.pull(thorough) and (not thorough or self._networks_structure.is_intact())

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
        if self._fuses():
            assert self._fused is not None
            self._fused.step()
            self.flat.push()
        else:
            self.policy.optimizer.zero_grad()
            self._step_of_optimizer(_MADE)
            self._check_after_foreign_code()
        return {"grad_norm": norm, "skipped_updates": 0.0}

    def _check_after_foreign_code(self) -> None:
        """
        Follow what an optimizer of the user's did to the parameters.

        :raises ValueError: if it replaced modules or parameters of the policy
        """
        self._bring_parameters()
        if not self._networks_structure.is_intact():
            raise ValueError(
                "policy.optimizer.step() replaced modules, parameters, hooks or methods of the policy in the middle of an "
                'update; make such changes between updates, or pass engine="autograd"'
            )


_MADE = th.zeros(())
"""The flag of a step that is not skipped."""
