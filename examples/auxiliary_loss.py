"""
A loss of one's own: override one small method, and the update optimises that.

    python examples/auxiliary_loss.py [timesteps]

Here the policy also pays for answering differently to observations that hardly differ (Mysore et al. 2021,
https://arxiv.org/abs/2012.06644), which makes for smooth controllers.
"""

import sys

import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_policyopt import PPO


class SmoothPPO(PPO):
    """PPO with a penalty on the difference between the actions at an observation and near it."""

    def loss(self, batch, coefficients):
        """P5, plus the penalty."""
        loss, terms = super().loss(batch, coefficients)
        nearby = batch.observations + 0.05 * th.randn_like(batch.observations)
        here, there = (self.policy.get_distribution(obs).mode() for obs in (batch.observations, nearby))
        penalty = ((here - there) ** 2).mean()
        return loss + 0.5 * penalty, {**terms, "smoothness_loss": penalty.detach()}


def main(total_timesteps: int = 50_000) -> None:
    """
    Train on Pendulum-v1; ``train/smoothness_loss`` appears in the log.

    :param total_timesteps: environment steps to train for
    """
    env = make_vec_env("Pendulum-v1", n_envs=4, seed=0)
    SmoothPPO("MlpPolicy", env, n_steps=512, batch_size=256, gamma=0.95, verbose=1, seed=0).learn(total_timesteps)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
