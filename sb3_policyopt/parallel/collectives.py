"""
Collective operations: what every rank calls at the same time, and what then holds on all of them.

With one process each is the identity. An error, or a rank that is missing, raises
:class:`~sb3_policyopt.errors.RankLostError`.
"""

import pickle
import time
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch as th
import torch.distributed as dist

from sb3_policyopt.parallel import mailboxes
from sb3_policyopt.parallel.group import connected
from sb3_policyopt.parallel.launcher import world_size

if TYPE_CHECKING:  # a build of torch may lack them
    from torch.distributed import ReduceOp, Work

T = TypeVar("T")


def sum_(tensor: th.Tensor) -> th.Tensor:
    """
    The sum over all ranks, the same bits on each.

    :param tensor: overwritten
    :return: the same tensor
    """
    if world_size() > 1:
        connected().exchange(all_reduce, tensor, dist.ReduceOp.SUM, np.add)
    return tensor


def max_(tensor: th.Tensor) -> th.Tensor:
    """
    The largest over all ranks, entry by entry.

    :param tensor: overwritten
    :return: the same tensor
    """
    if world_size() > 1:
        connected().exchange(all_reduce, tensor, dist.ReduceOp.MAX, np.maximum)
    return tensor


def broadcast_(tensor: th.Tensor) -> th.Tensor:
    """
    What rank 0 has.

    :param tensor: overwritten on the other ranks
    :return: the same tensor
    """
    if world_size() > 1:
        connected().exchange(broadcast, tensor)
    return tensor


def gather(thing: T) -> list[T]:
    """
    What each rank has, on every rank.

    :param thing: can be pickled
    :return: one entry per rank, in their order
    """
    return connected().exchange(all_gather, thing) if world_size() > 1 else [thing]


def from_rank_0(thing: T) -> T:
    """
    What rank 0 has, on every rank.

    :param thing: can be pickled; used on rank 0 only
    :return: rank 0's
    """
    things = [thing]
    if world_size() > 1:
        connected().exchange(dist.broadcast_object_list, things, src=0)
    return things[0]


def barrier() -> None:
    """Wait until every rank has called this."""
    gather(None)


# ---------------------------------------------------------------------- one operation each, without the handling of failures


def all_reduce(tensor: th.Tensor, op: "ReduceOp.RedOpType", combine: np.ufunc) -> None:
    """
    Combine the tensors of all ranks.

    :param tensor: overwritten
    :param op: how, for ``torch.distributed``
    :param combine: the same, for NumPy
    """
    if boxes := connected().mailboxes_for(tensor):
        boxes.reduce_(tensor.detach().numpy(), combine)
    else:
        _busy_wait(dist.all_reduce(tensor, op=op, async_op=True), tensor.device)


def broadcast(tensor: th.Tensor) -> None:
    """
    Give all ranks the tensor of rank 0.

    :param tensor: overwritten on the other ranks
    """
    if boxes := connected().mailboxes_for(tensor):
        boxes.broadcast_(tensor.detach().numpy())
    else:
        _busy_wait(dist.broadcast(tensor, src=0, async_op=True), tensor.device)


def all_gather(thing: T) -> list[T]:
    """
    What each rank has.

    :param thing: can be pickled
    :return: one entry per rank, in their order
    """
    boxes = connected().mailboxes
    messages = None if boxes is None else boxes.gather(pickle.dumps(thing))
    return connected().gather_by_network(thing) if messages is None else [pickle.loads(message) for message in messages]


def _busy_wait(work: "Work | None", device: th.device) -> None:
    """
    Wait for a collective operation.

    On the CPU a process that sleeps gives up its core, and waking it takes several times as long as the exchange. So it
    yields the core repeatedly for a while before it sleeps.

    :param work: under way; None if this process takes no part in it
    :param device: of its tensor
    """
    if work is None:
        return
    if device.type == "cpu":
        until = time.monotonic() + mailboxes.BUSY_WAIT
        while not work.is_completed() and time.monotonic() < until:
            mailboxes.yield_core()
    work.wait()
