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
from sb3_policyopt.engines.hybrid import HybridEngine
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
    why_autograd = None
    if overridden:
        why_autograd = f"{', '.join(overridden)} of the algorithm is overridden"
    elif micro_batch_size is not None:
        why_autograd = "micro_batch_size is set"
    obstacle = why_autograd or closed_form_obstacle(policy)
    if wanted == "closed_form" and obstacle is not None:
        raise ValueError(f'engine="closed_form" cannot serve this policy: {obstacle}; use engine="auto"')
    kind: type[Engine] = AutogradEngine
    if wanted != "autograd" and obstacle is None:
        kind = ClosedFormEngine
    elif wanted != "autograd" and (why_autograd or networks_obstacle(policy)) is None:
        kind = HybridEngine
    channels_last = not overridden and _takes_channels_last(policy)
    if type(current) is kind and current.policy is policy and current.serves(trainable_parameters(policy)):
        if isinstance(current, AutogradEngine):
            current.micro_batch_size, current.channels_last = micro_batch_size, channels_last
        return current
    if kind is ClosedFormEngine:
        return ClosedFormEngine(policy)
    if kind is HybridEngine:
        return HybridEngine(policy, objectives, channels_last)
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
    return (
        policy.device.type == "cpu"
        and all(type(extractor) in (NatureCNN, CombinedExtractor) for extractor in _extractors(policy))
        and _overridden(policy) is None
    )


def closed_form_obstacle(policy: ActorCriticPolicy) -> str | None:
    """
    What keeps the closed form from computing exactly what the policy computes.

    :param policy: any SB3 actor-critic policy
    :return: the first obstacle found, None if there is none
    """
    return networks_obstacle(policy) or _unusual_features(policy)


def networks_obstacle(policy: ActorCriticPolicy) -> str | None:
    """
    What keeps the closed form from computing exactly what the policy's networks compute from their features.

    :param policy: any SB3 actor-critic policy
    :return: the first obstacle found, None if there is none
    """
    return _overridden(policy) or _unusual_actions(policy) or _unusual_modules(policy) or _unusual_tensors(policy)


def _extractors(policy: ActorCriticPolicy) -> list[nn.Module]:
    """
    The features extractors.

    :param policy: any SB3 actor-critic policy
    :return: each once
    """
    return list(dict.fromkeys((policy.features_extractor, policy.pi_features_extractor, policy.vf_features_extractor)))


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


def _unusual_features(policy: ActorCriticPolicy) -> str | None:
    """
    Observations that do not become features by flattening.

    :param policy: a policy with the methods of ActorCriticPolicy
    :return: the obstacle, None if there is none
    """
    if not isinstance(policy.observation_space, OBSERVATION_SPACES):
        return f"the observation space is {type(policy.observation_space).__name__}"
    for extractor in _extractors(policy):
        if type(extractor) is not FlattenExtractor:
            return f"the features extractor is {type(extractor).__name__}"
        if any(_hooked(module) for module in extractor.modules()):
            return "a module has a hook"
    return None


def _unusual_actions(policy: ActorCriticPolicy) -> str | None:
    """
    Action spaces and distributions without a closed form here.

    :param policy: a policy with the methods of ActorCriticPolicy
    :return: the obstacle, None if there is none
    """
    if isinstance(policy.action_space, spaces.MultiBinary) and len(policy.action_space.shape) != 1:
        return "the action space has more than one axis"
    if type(policy.action_dist) not in DISTRIBUTIONS:
        return f"the action distribution is {type(policy.action_dist).__name__}"
    return None


def _unusual_modules(policy: ActorCriticPolicy) -> str | None:
    """
    Anything but two chains of linear layers with one known activation between them, above one extractor or one each.

    :param policy: a policy with the methods of ActorCriticPolicy
    :return: the obstacle, None if there is none
    """
    n_extractors = 1 if policy.share_features_extractor else 2
    if len(_extractors(policy)) != n_extractors or policy.features_extractor is not policy.pi_features_extractor:
        return "the features extractors are not those that SB3 builds"
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
    Parameters elsewhere than in float32 on the CPU, and of the networks also frozen ones, shared ones, extra ones, and hooks.

    :param policy: a policy made of plain modules
    :return: the obstacle, None if there is none
    """
    modules = [policy, *policy.mlp_extractor.modules(), policy.action_net, policy.value_net]
    if any(_hooked(module) for module in modules):
        return "a module has a hook"
    of_extractors = {id(parameter) for extractor in _extractors(policy) for parameter in extractor.parameters()}
    parameters = dict(policy.named_parameters())
    n_linear = sum(type(module) is nn.Linear for module in modules)
    n_expected = 2 * n_linear + isinstance(policy.action_space, spaces.Box)
    if len(parameters) != n_expected + len(of_extractors):
        return "the policy has other parameters than its layers and log_std"
    for name, parameter in parameters.items():
        if parameter.dtype != th.float32 or parameter.device.type != "cpu":
            return f"{name} is {parameter.dtype} on {parameter.device}"
        if id(parameter) in of_extractors:
            continue
        if not parameter.requires_grad:
            return f"{name} is frozen"
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return f"{name} has a hook"
    return None


def _hooked(module: nn.Module) -> bool:
    """
    Whether somebody wants to be called when a module computes.

    :param module: without its children
    :return: True if so
    """
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)
