"""One order of the parameters in the flat vector of all ranks, which add up such vectors by position."""

from itertools import chain

from sb3_policyopt.models import AnyModel
from sb3_policyopt.models.torch_policy import TorchModel
from sb3_policyopt.parallel.collectives import gather
from sb3_policyopt.parallel.launcher import rank


def with_same_layout(model: AnyModel) -> AnyModel:
    """
    A model in which the actor's parameters are those that the actions depend on on any rank.

    A rank tells them by its own observations. Where these decide which parameters are used, such as an expert for each task,
    the ranks find different ones, and one process with all environments would find them all.

    :param model: of this rank
    :return: the same if all ranks have the same layout, otherwise another one of the same policy
    :raises ValueError: if the ranks have different parameters, or compute them in different ways
    """
    named = dict(model.policy.named_parameters())
    names = {id(parameter): name for name, parameter in named.items()}
    listed = [names[id(parameter)] for parameter in model.flat.parameters]
    actor, critic = listed[: model.actor_count], listed[model.actor_count :]
    common_actor, common_critic = agreed_split(gather((model.name, actor, critic)))
    if (common_actor, common_critic) == (actor, critic):
        return model
    assert isinstance(model, TorchModel)  # the others read the layout off the policy's modules
    parts = [named[name] for name in common_actor], [named[name] for name in common_critic]
    common = TorchModel(model.policy, parts, model.micro_batch_size, model.channels_last)
    common.reason = model.reason
    return common


def agreed_split(of_ranks: list[tuple[str, list[str], list[str]]]) -> tuple[list[str], list[str]]:
    """
    What is the actor's on any rank, and all other parameters.

    :param of_ranks: of each rank the name of its engine, and the names of its actor's and critic's parameters
    :return: the names of the actor's and the critic's parameters, rank 0's if all have the same
    :raises ValueError: if the ranks have different parameters, or compute them in different ways
    """
    engine, actor, critic = of_ranks[0]
    if all(of_rank == of_ranks[0] for of_rank in of_ranks):
        return actor, critic
    for other, (name, *parts) in enumerate(of_ranks):
        if name != engine or sorted(chain(*parts)) != sorted([*actor, *critic]) or engine != TorchModel.name:
            raise ValueError(
                f"rank {rank()}: the policy is computed in one way on rank 0 (engine {engine}) and in another on rank {other} "
                f"(engine {name}), or has other trainable parameters there; freeze, replace and override the same on all ranks"
            )
    reached = {name for _, part, _ in of_ranks for name in part}
    both = [*actor, *critic]
    return [name for name in both if name in reached], [name for name in both if name not in reached]
