"""How all ranks get the parameters of rank 0 at the start, and keep the same ones."""

import io
import pickle
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from sb3_policyopt.parallel.collectives import from_rank_0, gather, max_
from sb3_policyopt.parallel.group import connected, together
from sb3_policyopt.parallel.launcher import rank
from sb3_policyopt.parallel.rollouts import adopt_moments

DEVICE_HINT = ', and where the hosts differ, with device="cpu" or "cuda" in place of "auto"'


SUMMED = {th.float32, th.float64}
"""Types of parameters whose gradients the ranks add up."""


@contextmanager
def training(model: OnPolicyAlgorithm) -> Iterator[None]:
    """
    Within this context the ranks train one model: that of rank 0, which is also the only one that logs.

    :param model: about to learn
    :raises ValueError: if the ranks were given different arguments
    :raises RankLostError: if another rank failed or is gone
    """
    with together(), connected().saves.training():
        if rank() > 0:
            model.set_logger(Logger(folder=None, output_formats=[]))
        check_alike(model)
        seed_apart(model)
        adopt_state(model)
        adopt_moments(model.get_vec_normalize_env())
        yield


def check_alike(model: OnPolicyAlgorithm) -> None:
    """
    Refuse ranks that do not run the same training.

    :param model: about to learn
    :raises ValueError: naming the first difference, parameters of the optimizer that are not the policy's, or a type of which
        the ranks cannot add gradients
    """
    of_policy = {id(parameter) for parameter in model.policy.parameters()}
    stepped = [parameter for group in model.policy.optimizer.param_groups for parameter in group["params"]]
    if any(id(parameter) not in of_policy for parameter in stepped):
        raise ValueError(
            "policy.optimizer has parameters that are not the policy's, whose gradients the ranks do not exchange; "
            "make their module a part of the policy (policy.head = head)"
        )
    kinds = {parameter.dtype for parameter in stepped if parameter.requires_grad} - SUMMED
    if kinds:
        raise ValueError(
            f"policy: its parameters are of {', '.join(sorted(map(str, kinds)))}, whose gradients the ranks cannot add "
            "without losing digits; convert the policy with policy.to(torch.float32), or train it in one process"
        )
    mine = {
        "the algorithm": type(model).__name__,
        "the policy": type(model.policy).__name__,
        "the device": model.device.type,
        "the list of its parameters": _parameters(model.policy),
        **{
            name: getattr(model, name, None)
            for name in ("n_steps", "n_epochs", "n_critic_updates", "sub_sampling_factor", "normalize_advantage")
        },
    }
    theirs = gather(mine)
    for other, settings in enumerate(theirs):
        for name, value in settings.items():
            if value != theirs[0][name]:
                raise ValueError(
                    f"{name} differs between the ranks: {theirs[0][name]} on rank 0, {value} on rank {other}; "
                    "start every rank with the same script and arguments" + DEVICE_HINT * (name == "the device")
                )


def _parameters(policy: nn.Module) -> list[str]:
    """
    A policy's parameters in words.

    :param policy: any
    :return: of each its name, shape, type, and whether it is frozen, in the policy's order
    """
    return [
        f"{name} {tuple(parameter.shape)} {parameter.dtype}{'' if parameter.requires_grad else ' frozen'}"
        for name, parameter in policy.named_parameters()
    ]


def seed_apart(model: OnPolicyAlgorithm) -> None:
    """
    Seed once more where the ranks have different numbers of environments, which a rank does not know before they meet: the
    environments of all ranks get the seeds that one process would give them.

    :param model: about to learn; has noted the user's seed until now
    """
    seed, n_envs = vars(model).get("_seed_given"), gather(model.n_envs)
    vars(model)["_seed_given"] = None  # the environments start with it once
    first = sum(n_envs[: rank()])
    if seed is not None and first != rank() * model.n_envs:
        OnPolicyAlgorithm.set_random_seed(model, seed + first)


def adopt_state(model: OnPolicyAlgorithm) -> None:
    """
    Take over the parameters, the optimizer's state and the step counts of rank 0.

    :param model: changed on the other ranks
    """
    file = io.BytesIO()
    if rank() == 0:
        counts = {"num_timesteps": model.num_timesteps, "_n_updates": model._n_updates}
        th.save((model.policy.state_dict(), model.policy.optimizer.state_dict(), counts), file)
    state = from_rank_0(file.getvalue())
    if rank() > 0:
        # Not only tensors: an optimizer's groups may hold any object.
        policy, optimizer, counts = th.load(io.BytesIO(state), map_location=model.device, weights_only=False)
        model.policy.load_state_dict(policy)
        model.policy.optimizer.load_state_dict(optimizer)
        vars(model).update(counts)


def keep_together(model: OnPolicyAlgorithm) -> None:
    """
    Make sure after an update that all ranks have the same policy, bit for bit.

    They have it anyway where equal numbers give equal results; ranks on different kinds of processor may differ in the last
    bit, and so do the running statistics of batch normalisation. Rank 0 is then right.

    :param model: just updated
    """
    digest = sum((_digest(thing) for thing in model.policy.state_dict().values()), th.zeros((), dtype=th.int64))
    largest, minus_smallest = max_(th.stack((digest, -digest))).tolist()
    if largest != -minus_smallest:
        adopt_state(model)


def _digest(thing: object) -> th.Tensor:
    """
    A number that changes with any bit.

    :param thing: a tensor, or what else a ``state_dict`` holds: what ``get_extra_state`` of a module returned
    :return: int64, on the CPU
    """
    if not isinstance(thing, th.Tensor):
        return th.tensor(zlib.crc32(pickle.dumps(thing)))
    integer = {1: th.uint8, 2: th.int16, 4: th.int32}.get(thing.element_size(), th.int64)
    bits = thing.detach().contiguous().view(-1).view(integer).long()
    return (bits * th.arange(1, 2 * len(bits), 2, device=bits.device)).sum().cpu()
