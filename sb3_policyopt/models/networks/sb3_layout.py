"""What the closed form reads off an MlpPolicy: its layers, its activation, its features."""

from collections.abc import Callable

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from sb3_policyopt.distributions import ActionDistribution
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.models.networks.activations import CONSTANTS


def linear_layers(policy: ActorCriticPolicy) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """
    The linear layers of actor and critic, heads last.

    :param policy: an MlpPolicy
    :return: the actor's layers, the critic's layers
    """
    actor = [module for module in policy.mlp_extractor.policy_net if isinstance(module, nn.Linear)]
    critic = [module for module in policy.mlp_extractor.value_net if isinstance(module, nn.Linear)]
    heads = [head for head in (policy.action_net, policy.value_net) if isinstance(head, nn.Linear)]
    return [*actor, heads[0]], [*critic, heads[1]]


def sb3_parameters(policy: ActorCriticPolicy, family: ActionDistribution) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """
    The trainable parameters of a policy with SB3's modules, in the order of the closed form.

    :param policy: a policy in which :func:`sb3_policyopt.models.obstacles.networks_obstacle` found no obstacle
    :param family: of its action distribution
    :return: the actor's: extractor, memory, layers, the distribution's own; the critic's: its own extractor if it has one,
        what stands between it and its layers, layers
    """
    actor_layers, critic_layers = linear_layers(policy)
    of_actor, of_critic = memory_modules(policy)
    actor = [p for p in policy.pi_features_extractor.parameters() if p.requires_grad]
    actor += [p for module in of_actor for p in module.parameters()]
    actor += [p for layer in actor_layers for p in layer.parameters()]
    actor += free_parameters(policy, family)
    critic: list[nn.Parameter] = []
    if not policy.share_features_extractor:
        critic += [p for p in policy.vf_features_extractor.parameters() if p.requires_grad]
    critic += [p for module in of_critic for p in module.parameters()]
    critic += [p for layer in critic_layers for p in layer.parameters()]
    return actor, critic


def memory_modules(policy: ActorCriticPolicy) -> tuple[list[nn.Module], list[nn.Module]]:
    """
    What stands between the features extractors and the layers of a policy with memory.

    :param policy: with SB3's modules, or sb3-contrib's
    :return: the actor's recurrent network; the critic's, or the linear layer in its place; none if there is none
    """
    parts = vars(policy)["_modules"]
    actor, critic = parts.get("lstm_actor"), parts.get("lstm_critic") or parts.get("critic")
    return [actor] if actor is not None else [], [critic] if critic is not None else []


def free_parameters(policy: ActorCriticPolicy, family: ActionDistribution) -> list[nn.Parameter]:
    """
    The action distribution's own parameters.

    :param policy: an MlpPolicy
    :param family: of its action distribution
    :return: such as log_std
    """
    return [getattr(policy, name) for name in family.free]


def features_extractors(policy: ActorCriticPolicy) -> list[nn.Module]:
    """
    The features extractors.

    :param policy: any SB3 actor-critic policy
    :return: each once
    """
    return list(dict.fromkeys((policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor)))


def activation_modules(policy: ActorCriticPolicy) -> list[nn.Module]:
    """
    The activations between the layers.

    :param policy: an MlpPolicy
    :return: those of the actor, those of the critic
    """
    networks = (*policy.mlp_extractor.policy_net, *policy.mlp_extractor.value_net)
    return [module for module in networks if not isinstance(module, nn.Linear)]


def read_off(policy: ActorCriticPolicy) -> list[tuple[object, str]]:
    """
    What an engine reads off a policy beside its modules and parameters.

    :param policy: an MlpPolicy
    :return: objects and the names of their attributes: types and constants of the activations, the spaces and the
        distribution, and the policy's switches
    """
    modules = activation_modules(policy)
    of_activations = [(module, name) for module in modules for name in ("__class__", *CONSTANTS.get(type(module), ()))]
    names = ("observation_space", "action_space", "action_dist", "normalize_images", "share_features_extractor")
    return [*of_activations, *((policy, name) for name in names)]


def make_features(policy: ActorCriticPolicy) -> Callable[[NumpyArray], NumpyArray]:
    """
    What SB3's preprocessing and FlattenExtractor do to observations.

    :param policy: whose observation space is Box, Discrete, MultiDiscrete or MultiBinary
    :return: observations of shape (n, ...) ↦ float32 features of shape (n, n_features)
    """
    space = policy.observation_space
    if isinstance(space, spaces.Discrete):
        n = int(space.n)
        return lambda observations: one_hot(observations.reshape(-1), n, space)
    if isinstance(space, spaces.MultiDiscrete):
        sizes = [int(n) for n in space.nvec]
        return lambda observations: np.concatenate(
            [
                one_hot(column, n, space)
                for column, n in zip(observations.reshape(len(observations), -1).T, sizes, strict=True)
            ],
            1,
        )
    scale = np.float32(255) if policy.normalize_images and is_image_space(space) else None

    def flatten(observations: NumpyArray) -> NumpyArray:
        features: NumpyArray = observations.reshape(len(observations), -1).astype(np.float32, copy=False)
        return features if scale is None else features / scale

    return flatten


def one_hot(values: NumpyArray, n: int, space: spaces.Discrete | spaces.MultiDiscrete) -> NumpyArray:
    """
    Rows of zeros with a one at each value, as ``torch.nn.functional.one_hot`` of the value cast to an integer.

    :param values: from 0 to n − 1, of any real type, shape (batch,)
    :param n: number of columns
    :param space: that the values are said to be from, for the message
    :return: float32, shape (batch, n)
    :raises ValueError: naming the first value that is none of these
    """
    with np.errstate(invalid="ignore"):  # NaN becomes a number far out of range
        columns = values.astype(np.int64, copy=False)
    if columns.size and int(columns.view(np.uint64).max()) >= n:  # a negative number is a huge one here
        row = int(np.flatnonzero((columns < 0) | (columns >= n))[0])
        raise ValueError(
            f"The observation {values[row]} in row {row} (the environment's number during a rollout) is none of 0 … {n - 1}, "
            f"though the observation space is {space}. SB3 encodes discrete observations from 0 on and does not look at a "
            "space's start: subtract it in a wrapper"
        )
    rows = np.zeros((len(columns), n), np.float32)
    rows[np.arange(len(columns)), columns] = 1
    return rows
