"""Which engine serves a policy."""

from collections.abc import Sequence

import torch as th
from gymnasium import spaces
from stable_baselines3.common import distributions
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from torch import nn

from sb3_policyopt.engines.activations import make_activation
from sb3_policyopt.engines.autograd import AutogradEngine, Objectives
from sb3_policyopt.engines.closed_form import ClosedFormEngine
from sb3_policyopt.engines.engine import Engine
from sb3_policyopt.engines.mlp_policy import hidden_activation

POLICY_METHODS = (
    "forward",
    "evaluate_actions",
    "get_distribution",
    "predict_values",
    "extract_features",
    "_get_action_dist_from_latent",
)
DISTRIBUTIONS = (
    distributions.DiagGaussianDistribution,
    distributions.CategoricalDistribution,
    distributions.MultiCategoricalDistribution,
    distributions.BernoulliDistribution,
)
OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def choose_engine(
    policy: ActorCriticPolicy,
    objectives: Objectives,
    wanted: str,
    micro_batch_size: int | None,
    overridden: Sequence[str] = (),
    current: Engine | None = None,
) -> Engine:
    """
    The fastest engine that computes exactly what the policy and the algorithm's hooks say.

    :param policy: any SB3 actor-critic policy
    :param objectives: the algorithm, whose hooks define what is optimised
    :param wanted: "auto", "autograd" or "closed_form"
    :param micro_batch_size: most samples that go through the networks at once, None for no bound
    :param overridden: names of the algorithm's methods that a subclass replaced and that only autograd can honour
    :param current: the engine in use, which is kept if it is of the right kind and still fits the policy
    :return: the engine, bound to the policy's parameters
    :raises ValueError: if ``wanted`` is "closed_form" and something stands in its way
    """
    obstacle = None
    if wanted != "autograd":
        obstacle = closed_form_obstacle(policy)
        if overridden:
            obstacle = f"{', '.join(overridden)} of the algorithm is overridden"
        elif micro_batch_size is not None:
            obstacle = "micro_batch_size is set"
    if wanted == "closed_form" and obstacle is not None:
        raise ValueError(f'engine="closed_form" cannot serve this policy: {obstacle}; use engine="auto"')
    kind = AutogradEngine if wanted == "autograd" or obstacle is not None else ClosedFormEngine
    channels_last = not overridden and _takes_channels_last(policy)
    if type(current) is kind and current.policy is policy and current.serves(trainable_parameters(policy)):
        if isinstance(current, AutogradEngine):
            current.micro_batch_size, current.channels_last = micro_batch_size, channels_last
        return current
    if kind is ClosedFormEngine:
        return ClosedFormEngine(policy)
    return AutogradEngine(policy, objectives, micro_batch_size, channels_last)


def trainable_parameters(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    """
    The parameters that may change.

    :param policy: any SB3 actor-critic policy
    :return: those that require a gradient
    """
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def _takes_channels_last(policy: ActorCriticPolicy) -> bool:
    """
    Whether images may be handed to the policy with their channels last in memory.

    SB3's own code takes them so. Somebody else's may look at the images as rows of numbers (``view``), which torch refuses.

    :param policy: any SB3 actor-critic policy
    :return: True for SB3's convolutions on the CPU, where they are up to 1.7 times as fast
    """
    extractors: set[nn.Module] = {policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor}
    return (
        policy.device.type == "cpu"
        and all(type(extractor) in (NatureCNN, CombinedExtractor) for extractor in extractors)
        and _overridden(policy) is None
    )


def closed_form_obstacle(policy: ActorCriticPolicy) -> str | None:
    """
    What keeps the closed form from computing exactly what the policy computes.

    :param policy: any SB3 actor-critic policy
    :return: the first obstacle found, None if there is none
    """
    for obstacle in (_overridden(policy), _unusual_spaces(policy), _unusual_modules(policy), _unusual_tensors(policy)):
        if obstacle is not None:
            return obstacle
    return None


def _overridden(policy: ActorCriticPolicy) -> str | None:
    """
    Methods of the policy that are not SB3's.

    :param policy: any SB3 actor-critic policy
    :return: the obstacle, None if there is none
    """
    for name in POLICY_METHODS:
        if name in vars(policy) or getattr(type(policy), name, None) is not getattr(ActorCriticPolicy, name):
            return f"{name} of the policy is not that of ActorCriticPolicy"
    return None


def _unusual_spaces(policy: ActorCriticPolicy) -> str | None:
    """
    Spaces and distributions without a closed form here.

    :param policy: a policy with the methods of ActorCriticPolicy
    :return: the obstacle, None if there is none
    """
    if not isinstance(policy.observation_space, OBSERVATION_SPACES):
        return f"the observation space is {type(policy.observation_space).__name__}"
    if isinstance(policy.action_space, spaces.MultiBinary) and len(policy.action_space.shape) != 1:
        return "the action space has more than one axis"
    if type(policy.action_dist) not in DISTRIBUTIONS:
        return f"the action distribution is {type(policy.action_dist).__name__}"
    return None


def _unusual_modules(policy: ActorCriticPolicy) -> str | None:
    """
    Anything but two chains of linear layers with one known activation between them.

    :param policy: a policy with the methods of ActorCriticPolicy
    :return: the obstacle, None if there is none
    """
    extractors: set[nn.Module] = {policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor}
    if any(type(extractor) is not FlattenExtractor for extractor in extractors):
        return f"the features extractor is {type(policy.features_extractor).__name__}"
    if type(policy.mlp_extractor) is not MlpExtractor:
        return f"the mlp_extractor is {type(policy.mlp_extractor).__name__}"
    if type(policy.action_net) is not nn.Linear or type(policy.value_net) is not nn.Linear:
        return "action_net or value_net is no plain linear layer"
    activation = hidden_activation(policy)
    if activation is not None and make_activation(activation) is None:
        return f"the activation function {type(activation).__name__} has no closed form here"
    expected = (nn.Linear, type(activation))
    for chain in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net):
        if type(chain) is not nn.Sequential or len(chain) % 2:
            return "the mlp_extractor holds other modules than SB3 builds"
        if any(type(module) is not expected[i % 2] for i, module in enumerate(chain)):
            return "the mlp_extractor holds other modules than SB3 builds"
    return None


def _unusual_tensors(policy: ActorCriticPolicy) -> str | None:
    """
    Parameters elsewhere than in float32 on the CPU, frozen ones, shared ones, extra ones, and hooks.

    :param policy: a policy made of plain modules
    :return: the obstacle, None if there is none
    """
    parameters = dict(policy.named_parameters())
    n_linear = sum(type(module) is nn.Linear for module in policy.modules())
    n_expected = 2 * n_linear + isinstance(policy.action_space, spaces.Box)
    if len(parameters) != n_expected:
        return "the policy has other parameters than its layers and log_std"
    for name, parameter in parameters.items():
        if parameter.dtype != th.float32 or parameter.device.type != "cpu":
            return f"{name} is {parameter.dtype} on {parameter.device}"
        if not parameter.requires_grad:
            return f"{name} is frozen"
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return f"{name} has a hook"
    hook_kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, kind) for module in policy.modules() for kind in hook_kinds):
        return "a module has a hook"
    return None
