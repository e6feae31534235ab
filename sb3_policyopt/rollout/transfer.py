"""From the device to the CPU."""

import torch as th

from sb3_policyopt.maths.arrays import NumpyArray
from sb3_policyopt.rollout.batch import Observations


def to_host(*tensors: th.Tensor) -> list[NumpyArray]:
    """
    Tensors as arrays. Those of another device come in one transfer, which is waited for once.

    :param tensors: on one device; gradients are left behind
    :return: the same numbers, of the same shapes and types; bfloat16, which NumPy lacks, as float32
    """
    tensors = tuple([tensor.float() if tensor.dtype == th.bfloat16 else tensor for tensor in map(th.Tensor.detach, tensors)])
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.numpy() for tensor in tensors]
    parts = [tensor.contiguous().view(-1).view(th.uint8) for tensor in tensors]
    joined = th.cat(parts).cpu().numpy()
    arrays, start = [], 0
    for tensor, part in zip(tensors, parts, strict=True):
        piece = joined[start : start + len(part)].copy()  # aligned, and with memory of its own
        arrays.append(piece.view(th.empty(0, dtype=tensor.dtype).numpy().dtype).reshape(tuple(tensor.shape)))
        start += len(part)
    return arrays


def observations_to_host(observations: Observations[th.Tensor]) -> Observations[NumpyArray]:
    """
    Observations as arrays, see :func:`to_host`.

    :param observations: a tensor, or a dict of such
    :return: on the CPU the same memory
    """
    if isinstance(observations, dict):
        return dict(zip(observations, to_host(*observations.values()), strict=True))
    return to_host(observations)[0]
