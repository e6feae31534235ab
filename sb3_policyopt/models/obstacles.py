"""What keeps the closed form from computing exactly what a policy's modules compute, looked for by identity."""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn

from sb3_policyopt.distributions import ActionDistribution
from sb3_policyopt.global_state import autocast_is_on
from sb3_policyopt.identity.kinds import is_own_gru, kind_of
from sb3_policyopt.identity.originals import POLICY_METHODS, is_called_as_usual, is_original, replaced_methods
from sb3_policyopt.identity.structure import GLOBAL_HOOKS, is_hooked
from sb3_policyopt.models.networks.activations import constants_of_activation, make_activation
from sb3_policyopt.models.networks.sb3_layout import (
    activation_modules,
    features_extractors,
    free_parameters,
    memory_modules,
)

OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def networks_obstacle(policy: ActorCriticPolicy, family: ActionDistribution | None) -> str | None:
    """
    What keeps the closed form from computing exactly what the policy's networks compute from their features.

    :param policy: any SB3 actor-critic policy
    :param family: of its action distribution, None if it has no closed form
    :return: the first obstacle found, None if there is none
    """
    overridden = overridden_methods(policy)
    if overridden is not None:
        return overridden
    if family is None:
        return f"the action distribution is {type(policy.action_dist).__name__}"
    return (
        _unusual_actions(policy)
        or _unusual_memory(policy)
        or _unusual_modules(policy)
        or _unusual_activations(policy)
        or _unusual_tensors(policy, family)
    )


def overridden_methods(policy: ActorCriticPolicy) -> str | None:
    """
    Methods of the policy that are not SB3's, and methods of SB3's and torch's classes that are not theirs.

    :param policy: any SB3 actor-critic policy
    :return: the obstacle, None if there is none
    """
    owner = kind_of(policy).owner
    for name in POLICY_METHODS:
        if not is_original(policy, owner, name):
            return f"{name} of the policy is not that of {owner.__name__}"
    if not is_called_as_usual(policy):
        return "__call__ of the policy is not that of nn.Module"
    replaced = replaced_methods()
    if replaced:
        return f"{', '.join(replaced)} was replaced"
    if any(GLOBAL_HOOKS):
        return "a hook of all modules is registered"
    if autocast_is_on():
        return "torch.autocast is on"
    return None


def unusual_features(policy: ActorCriticPolicy) -> str | None:
    """
    Observations that do not become features by flattening.

    :param policy: a policy with the methods of ActorCriticPolicy
    :return: the obstacle, None if there is none
    """
    space = policy.observation_space
    if not isinstance(space, OBSERVATION_SPACES):
        return f"the observation space is {type(space).__name__}"
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim != 1:
        return "the observation space has more than one axis"
    for extractor in features_extractors(policy):
        if type(extractor) is not FlattenExtractor:
            return f"the features extractor is {type(extractor).__name__}"
        flatten = extractor.flatten
        if type(flatten) is not nn.Flatten or (flatten.start_dim, flatten.end_dim) != (1, -1):
            return "the features extractor does not flatten"
        if any(_changed(module) for module in extractor.modules()):
            return "a features extractor has a hook or a method of its own"
    return None


def unusual_rows(policy: ActorCriticPolicy) -> str | None:
    """
    Features extractors below a memory whose output for a row depends on the rows beside it. sb3-contrib shows them the
    padding of sequences, too.

    :param policy: any SB3 actor-critic policy
    :return: the obstacle, None if there is none, or no memory
    """
    if kind_of(policy).memory:
        for module in (module for extractor in features_extractors(policy) for module in extractor.modules()):
            if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
                return f"{type(module).__name__} of a features extractor sees all rows, and the padding of sequences"
    return None


def _unusual_actions(policy: ActorCriticPolicy) -> str | None:
    """
    Action spaces without a closed form here, and distributions with a method of their own.

    :param policy: a policy with the methods of ActorCriticPolicy
    :return: the obstacle, None if there is none
    """
    if isinstance(policy.action_space, spaces.MultiBinary) and len(policy.action_space.shape) != 1:
        return "the action space has more than one axis"
    if any(name in vars(policy.action_dist) for name in dir(type(policy.action_dist))):
        return "a method of the action distribution was replaced"
    return None


def _unusual_modules(policy: ActorCriticPolicy) -> str | None:
    """
    Anything but two chains of linear layers with activations between them, above one extractor or one each.

    :param policy: a policy with the methods of ActorCriticPolicy
    :return: the obstacle, None if there is none
    """
    n_extractors = 1 if policy.share_features_extractor else 2
    if len(features_extractors(policy)) != n_extractors or policy.features_extractor is not policy.pi_features_extractor:
        return "the features extractors are not those that SB3 builds"
    if type(policy.mlp_extractor) is not MlpExtractor:
        return f"the mlp_extractor is {type(policy.mlp_extractor).__name__}"
    if type(policy.action_net) is not nn.Linear or type(policy.value_net) is not nn.Linear:
        return "action_net or value_net is no plain linear layer"
    for chain in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net):
        if type(chain) is not nn.Sequential or len(chain) % 2:
            return "the mlp_extractor holds other modules than SB3 builds"
        if any((type(module) is nn.Linear) != (i % 2 == 0) for i, module in enumerate(chain)):
            return "the mlp_extractor holds other modules than SB3 builds"
    for module in (policy, policy.mlp_extractor, *_network_modules(policy)):
        if _changed(module):
            return f"{type(module).__name__} has a hook or a method of its own"
    return None


def _unusual_memory(policy: ActorCriticPolicy) -> str | None:
    """
    Recurrent networks without a closed form here.

    :param policy: with the methods of its kind
    :return: the obstacle, None if there is none, or no memory
    """
    owner = kind_of(policy).owner
    if not kind_of(policy).memory:
        return None
    if not is_original(policy, owner, "_process_sequence"):
        return f"_process_sequence of the policy is not that of {owner.__name__}"
    if policy.shared_lstm != (not memory_modules(policy)[1]):
        return "shared_lstm of the policy is not what its modules are made for"
    for module in (module for part in memory_modules(policy) for module in part):
        if _changed(module):
            return f"{type(module).__name__} has a hook or a method of its own"
        if type(module) is nn.Linear:
            continue
        if not (type(module) is nn.LSTM or is_own_gru(module)):
            return f"the recurrent network is {type(module).__name__}"
        if not module.bias or module.batch_first or module.dropout or module.bidirectional or module.proj_size:
            return "lstm_kwargs change how the recurrent network computes"
    return None


def _network_modules(policy: ActorCriticPolicy) -> list[nn.Module]:
    """
    The modules of both networks.

    :param policy: with SB3's modules
    :return: chains, layers, activations and heads
    """
    chains = (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net)
    return [*(module for chain in chains for module in (chain, *chain)), policy.action_net, policy.value_net]


def _changed(module: nn.Module) -> bool:
    """
    Whether a module has a hook, or a method of its own in place of its class's.

    :param module: without its children
    :return: True if it has a hook, or a method on the object
    """
    own = any(name in vars(module) for name in ("forward", "forward_actor", "forward_critic"))
    return own or is_hooked(module) or not is_called_as_usual(module)


def _unusual_activations(policy: ActorCriticPolicy) -> str | None:
    """
    Activations that have no closed form here, or that differ between the layers.

    :param policy: with SB3's modules
    :return: the obstacle, None if there is none
    """
    modules = activation_modules(policy)
    for module in modules:
        if make_activation(module) is None:
            return f"the activation function {module} has no closed form here"
    if len({constants_of_activation(module) for module in modules}) > 1:
        return "the activation functions differ between the layers"
    return None


def _unusual_tensors(policy: ActorCriticPolicy, family: ActionDistribution) -> str | None:
    """
    Parameters that are not float32 on one device, hooks, and of the networks also frozen, shared, missing or further ones.

    :param policy: a policy made of plain modules
    :param family: of its action distribution
    :return: the obstacle, None if there is none
    """
    layers = [module for module in _network_modules(policy) if isinstance(module, nn.Linear)]
    if any(len(layer._parameters) != 2 for layer in layers):
        return "a layer has other parameters than weight and bias"
    if [len(head.weight) for head in layers[-2:]] != [family.output_dim, 1]:
        return "action_net or value_net has another width than SB3 gives it"
    free = free_parameters(policy, family)
    if any(parameter.shape not in ((family.output_dim,), (1, family.output_dim)) for parameter in free):
        return f"{' and '.join(family.free)} of the policy has not one entry for each dimension of the action"
    mine = [parameter for layer in layers for parameter in (layer.weight, layer.bias)] + free
    if len({id(parameter) for parameter in mine}) != len(mine):
        return "actor and critic share parameters, or two layers do"
    below = [*features_extractors(policy), *(module for part in memory_modules(policy) for module in part)]
    of_extractors = [[*module.parameters()] for module in below]
    theirs = {id(parameter) for parameters in of_extractors for parameter in parameters}
    if len(theirs) != sum(map(len, of_extractors)) or not theirs.isdisjoint(map(id, mine)):
        return "the features extractors or the recurrent networks share parameters"
    if {id(parameter) for parameter in policy.parameters()} != theirs | {id(parameter) for parameter in mine}:
        return "the policy has other parameters than its layers and log_std"
    of_memory = {id(p) for part in memory_modules(policy) for module in part for p in module.parameters()}
    for name, parameter in policy.named_parameters():
        obstacle = _unusual_parameter(parameter, policy.device, frozen=id(parameter) in theirs - of_memory)
        if obstacle is not None:
            return f"{name} {obstacle}"
    return _missing_in_optimizer(policy)


def _unusual_parameter(parameter: nn.Parameter, device: th.device, frozen: bool) -> str | None:
    """
    What a model cannot compute with.

    :param parameter: of a policy
    :param device: of the policy
    :param frozen: whether it may be frozen
    :return: the obstacle, None if there is none
    """
    if type(parameter) is not nn.Parameter:
        return f"is of {type(parameter).__name__}"
    if parameter.dtype != th.float32 or parameter.device != device or device.type not in ("cpu", "cuda"):
        return f"is {parameter.dtype} on {parameter.device}"
    if not parameter.requires_grad and not frozen:
        return "is frozen"
    if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
        return "has a hook"
    return None


def _missing_in_optimizer(policy: ActorCriticPolicy) -> str | None:
    """
    Parameters that the optimizer does not step: their gradients are never zeroed, and add up in stock SB3.

    :param policy: any SB3 actor-critic policy
    :return: the obstacle, None if there is none
    """
    stepped = {id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and id(parameter) not in stepped:
            return f"{name} is not in policy.optimizer"
    return None


def unusual_optimizer(policy: ActorCriticPolicy) -> str | None:
    """
    Parameters of the optimizer that are not the policy's: a features extractor may use them.

    :param policy: any SB3 actor-critic policy
    :return: the obstacle, None if there is none
    """
    mine = {id(parameter) for parameter in policy.parameters()}
    stepped = [parameter for group in policy.optimizer.param_groups for parameter in group["params"]]
    if any(id(parameter) not in mine and parameter.requires_grad for parameter in stepped):
        return "policy.optimizer has parameters that are not the policy's"
    return None
