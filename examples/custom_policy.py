"""
Any SB3 policy works: here one with a features extractor of its own, shared by actor and critic, for both algorithms.

    python examples/custom_policy.py [timesteps]

What belongs to the actor is found by following the computation, so that layers may have any name.
"""

import sys

import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_policyopt import PPO, TRPO


class NormalisedFeatures(BaseFeaturesExtractor):
    """
    A linear layer with layer normalisation.

    :param observation_space: a Box of one axis
    :param features_dim: number of features
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 32) -> None:
        super().__init__(observation_space, features_dim)
        self.layers = th.nn.Sequential(
            th.nn.Linear(observation_space.shape[0], features_dim), th.nn.LayerNorm(features_dim), th.nn.SiLU()
        )

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Features of a batch of observations."""
        return self.layers(observations)


def main(total_timesteps: int = 20_000) -> None:
    """
    Train both algorithms on Pendulum-v1.

    :param total_timesteps: environment steps to train each for
    """
    policy_kwargs = {
        "features_extractor_class": NormalisedFeatures,
        "net_arch": {"pi": [32], "vf": [64, 64]},
        "activation_fn": th.nn.SiLU,
    }
    for algorithm in (PPO, TRPO):
        env = make_vec_env("Pendulum-v1", n_envs=4, seed=0)
        model = algorithm("MlpPolicy", env, n_steps=256, batch_size=128, gamma=0.95, policy_kwargs=policy_kwargs, seed=0)
        model.learn(total_timesteps)
        print(f"{algorithm.__name__}: {model.policy.features_extractor}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
