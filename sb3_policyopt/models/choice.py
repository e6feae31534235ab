"""Which model serves a policy, and why."""

from collections.abc import Mapping, Sequence

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN

from sb3_policyopt.distributions import ActionDistribution, family_of
from sb3_policyopt.identity.kinds import kind_of
from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.models import obstacles
from sb3_policyopt.models.closed_form import ClosedFormModel
from sb3_policyopt.models.closed_form_tensors import TensorClosedForm
from sb3_policyopt.models.extractors import are_known
from sb3_policyopt.models.hybrid import HybridModel
from sb3_policyopt.models.model import AnyModel
from sb3_policyopt.models.networks.sb3_layout import features_extractors
from sb3_policyopt.models.recurrent import RecurrentModel
from sb3_policyopt.models.split import split_parameters, used_by_actor
from sb3_policyopt.models.torch_policy import TorchModel
from sb3_policyopt.rollout.batch import Observations, each, n_rows
from sb3_policyopt.rollout.buffers import all_observations, samples_itself

MODELS: dict[str, type[AnyModel]] = {"closed_form": ClosedFormModel, "hybrid": HybridModel, "autograd": TorchModel}
"""By the name that ``engine=`` takes, the fastest first."""

_REACHES_CRITIC = "the actions depend on parameters of the critic's networks"


def choose_model(
    policy: ActorCriticPolicy,
    wanted: str,
    micro_batch_size: int | None,
    overridden: Sequence[str] = (),
    current: AnyModel | None = None,
    observations: Observations[NumpyArray] | Observations[th.Tensor] | None = None,
) -> AnyModel:
    """
    The fastest model that computes exactly what the policy and the algorithm's hooks say.

    :param policy: any SB3 actor-critic policy
    :param wanted: "auto", "autograd", "hybrid" or "closed_form"
    :param micro_batch_size: most samples that go through the networks at once, None for no bound
    :param overridden: what the user replaced and only autograd can honour, such as the names of hooks
    :param current: the model in use, which is kept if it is of the right kind and still fits the policy
    :param observations: the environments' last, where the actor's parameters have to be identified; None where they need not
    :return: the model, bound to the policy's parameters
    :raises ValueError: if ``wanted`` names a model and something stands in its way
    """
    family = family_of(policy)
    found = _obstacles(policy, family, overridden)
    if isinstance(current, TorchModel) and current.reaches_critic and current.policy is policy and current.serves():
        found = dict.fromkeys(found, _REACHES_CRITIC)
    if found.get(wanted) is not None:
        raise _cannot_serve(wanted, found[wanted])
    name = wanted if wanted in MODELS else next(name for name in MODELS if found.get(name) is None)
    kind = _kind(policy, name)
    channels_last = not overridden and _takes_channels_last(policy)
    model: AnyModel
    if type(current) is kind and current.name == name and current.policy is policy and current.serves():
        model = current
        if isinstance(current, (TorchModel, HybridModel)):
            current.channels_last = channels_last
    elif kind is ClosedFormModel and family is not None:
        model = ClosedFormModel(policy, family)
    elif kind is TensorClosedForm and family is not None:
        model = TensorClosedForm(policy, family, plain_features=name == "closed_form")
    elif kind is RecurrentModel and family is not None:
        model = RecurrentModel(policy, family, channels_last)
    elif kind is HybridModel and family is not None:
        model = HybridModel(policy, family, channels_last)
    else:
        tensors = None if observations is None else _as_tensors(observations, policy.device)
        model = TorchModel(policy, split_parameters(policy, tensors), micro_batch_size, channels_last)
    model.micro_batch_size = micro_batch_size
    model.reason = _reason(name, wanted, found)
    return model


def with_whole_actor(model: AnyModel, buffer: RolloutBuffer | None, wanted: str) -> AnyModel:
    """
    A model whose actor has all parameters that the actions of a rollout depend on.

    Modules that are not SB3's may choose by the observation what they compute with, such as an expert for each of several
    situations. A model is chosen when few observations are known.

    :param model: of a policy
    :param buffer: with a rollout; None where nobody asks which parameters are the actor's
    :param wanted: as of :func:`choose_model`
    :return: the same, unless there are parameters that it takes for the critic's alone
    :raises ValueError: if ``wanted`` names a model for which this stands in its way
    """
    policy, critic = model.policy, model.flat.parameters[model.actor_count :]
    if buffer is None or samples_itself(buffer) or not critic:
        return model
    if model.name != TorchModel.name and are_known(features_extractors(policy)):
        return model
    observations = all_observations(buffer)
    size = model.micro_batch_size or n_rows(observations)

    def used_in_piece(start: int) -> list[bool]:
        piece = each(observations, lambda array: array[start : start + size])
        return used_by_actor(policy, _as_tensors(piece, policy.device), critic)

    used = [any(of_pieces) for of_pieces in zip(*map(used_in_piece, range(0, n_rows(observations), size)), strict=True)]
    return _with_larger_actor(model, used, wanted) if any(used) else model


def _with_larger_actor(model: AnyModel, used: Sequence[bool], wanted: str) -> TorchModel:
    """
    Another model of the same policy, whose actor has more parameters.

    :param model: takes them for the critic's
    :param used: for each of its critic's parameters whether the actor has it
    :param wanted: as of :func:`choose_model`
    :return: a model that leaves everything to torch
    :raises ValueError: if ``wanted`` names another one
    """
    critic = [*zip(model.flat.parameters[model.actor_count :], used, strict=True)]
    actor = [*model.flat.parameters[: model.actor_count], *(parameter for parameter, is_used in critic if is_used)]
    rest = [parameter for parameter, is_used in critic if not is_used]
    channels_last = isinstance(model, (TorchModel, HybridModel)) and model.channels_last
    whole = TorchModel(model.policy, (actor, rest), model.micro_batch_size, channels_last)
    whole.reason = model.reason
    if model.name != whole.name:
        if wanted == model.name:
            raise _cannot_serve(wanted, _REACHES_CRITIC)
        whole.reaches_critic, whole.reason = True, _REACHES_CRITIC
    return whole


def _cannot_serve(wanted: str, obstacle: str | None) -> ValueError:
    """
    The error about a model that was asked for.

    :param wanted: its name
    :param obstacle: what stands in its way
    :return: the error
    """
    return ValueError(f'engine="{wanted}" cannot serve this policy: {obstacle}; use engine="auto"')


def computes_as_on_gpu(policy: ActorCriticPolicy) -> bool:
    """
    Whether all of a policy's closed form is computed with tensors.

    :param policy: any SB3 actor-critic policy
    :return: False on the CPU, where NumPy computes what is small
    """
    return policy.device.type != "cpu"


def _kind(policy: ActorCriticPolicy, name: str) -> type[AnyModel]:
    """
    The class of a model.

    :param policy: that it serves
    :param name: of the model
    :return: the class
    """
    if name == "autograd":
        return TorchModel
    if kind_of(policy).memory:
        return RecurrentModel
    return TensorClosedForm if computes_as_on_gpu(policy) else MODELS[name]


def _as_tensors(
    observations: Observations[NumpyArray] | Observations[th.Tensor], device: th.device
) -> Observations[th.Tensor]:
    """
    Observations of either library as tensors.

    :param observations: first axis n_envs
    :param device: of the policy
    :return: on it
    """
    if isinstance(observations, dict):
        return {key: th.as_tensor(array, device=device) for key, array in observations.items()}
    return th.as_tensor(observations, device=device)


def _obstacles(
    policy: ActorCriticPolicy, family: ActionDistribution | None, overridden: Sequence[str]
) -> dict[str, str | None]:
    """
    What keeps each of the faster models from serving.

    :param policy: any SB3 actor-critic policy
    :param family: of its action distribution, None if it has no closed form
    :param overridden: what the user replaced and only autograd can honour
    :return: for "closed_form" and "hybrid" the first obstacle found, None if there is none
    """
    of_both: str | None
    if overridden:
        of_both = f"{', '.join(overridden)} of the algorithm is overridden"
    else:
        of_both = obstacles.networks_obstacle(policy, family)
    has_memory = "the policy has memory" if kind_of(policy).memory else None
    if has_memory and policy.device.type != "cpu":
        of_both = of_both or "the policy has memory and is on a GPU"
    return {
        "closed_form": of_both or has_memory or obstacles.unusual_features(policy),
        "hybrid": of_both or obstacles.unusual_optimizer(policy) or obstacles.unusual_rows(policy),
    }


def _reason(name: str, wanted: str, found: Mapping[str, str | None]) -> str:
    """
    Why a model was chosen, in words.

    :param name: of the model
    :param wanted: what the user asked for
    :param found: the obstacles of the faster ones
    :return: one line
    """
    if name == wanted:
        return f'engine="{wanted}"'
    if name == "closed_form":
        return "all of the policy has a closed form"
    return f"{found['closed_form'] if name == 'hybrid' else found['hybrid']}"


def _takes_channels_last(policy: ActorCriticPolicy) -> bool:
    """
    Whether images may be handed to the policy with their channels last in memory.

    SB3's own code takes them so. Somebody else's, a hook's or a module's, may look at the images as rows of numbers
    (``view``), which torch refuses, or draw random numbers in the order of the memory.

    :param policy: any SB3 actor-critic policy
    :return: True for SB3's convolutions on the CPU, where they are up to 1.7 times as fast
    """
    extractors = features_extractors(policy)
    return (
        policy.device.type == "cpu"
        and all(type(extractor) in (NatureCNN, CombinedExtractor) for extractor in extractors)
        and are_known(extractors)
        and obstacles.overridden_methods(policy) is None
    )
