"""What the closed form reads off an MlpPolicy: its layers, its activation, its features."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

Array = NDArray[Any]


def linear_layers(policy: ActorCriticPolicy) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """
    The linear layers of actor and critic, heads last.

    :param policy: an MlpPolicy
    :return: the actor's layers, the critic's layers
    """
    actor = [module for module in policy.mlp_extractor.policy_net if isinstance(module, nn.Linear)]
    critic = [module for module in policy.mlp_extractor.value_net if isinstance(module, nn.Linear)]
    return [*actor, policy.action_net], [*critic, policy.value_net]  # type: ignore[list-item]


def hidden_activation(policy: ActorCriticPolicy) -> nn.Module | None:
    """
    The activation between the layers; both networks have the same.

    :param policy: an MlpPolicy
    :return: the first activation module, None if there is no hidden layer
    """
    networks = (*policy.mlp_extractor.policy_net, *policy.mlp_extractor.value_net)
    return next((module for module in networks if not isinstance(module, nn.Linear)), None)


def feature_extractor(space: spaces.Space[Any], normalize_images: bool) -> Callable[[Any], Array]:
    """
    What SB3's preprocessing and FlattenExtractor do to observations.

    :param space: Box, Discrete, MultiDiscrete or MultiBinary
    :param normalize_images: whether images are divided by 255
    :return: observations of shape (n, ...) ↦ float32 features of shape (n, n_features)
    """
    if isinstance(space, spaces.Discrete):
        one_hot = np.eye(int(space.n), dtype=np.float32)
        return lambda observations: one_hot[observations.reshape(-1)]
    if isinstance(space, spaces.MultiDiscrete):
        tables = [np.eye(int(n), dtype=np.float32) for n in space.nvec.reshape(-1)]
        return lambda observations: np.concatenate(
            [table[column] for table, column in zip(tables, observations.reshape(len(observations), -1).T, strict=True)], 1
        )
    scale = np.float32(255) if normalize_images and is_image_space(space) else None

    def flatten(observations: Any) -> Array:
        features: Array = observations.reshape(len(observations), -1).astype(np.float32, copy=False)
        return features if scale is None else features / scale

    return flatten
