"""
Which device is the fastest for a model on this machine, by a rule that measures no time, so that equal scripts run alike.

The rule estimates the time of one iteration on either device. A pass through the networks costs a fixed time (Python, and on
the GPU the launches of its kernels) and a time for every multiplication; so the CPU is faster where the work is small, and
the GPU where convolutions, or wide networks with many rows, make it large::

    time = n_steps · (action + forward pass of n_envs rows) + Σ n · (pass + forward and backward pass of its rows)

The environments take the same time on either and are left out. The constants below were fitted to measurements on
16 cores and one H100 (torch 2.11, NumPy 2.5), which ``tests/test_devices.py`` holds row by row.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

CPU_ACTION = 50.0
"""µs: acting once with the closed form, besides the multiplications."""

CPU_PASS = 200.0
"""µs: a minibatch with the closed form, besides the multiplications. 64 wide, 64 rows: 318 µs measured, 307 by the rule."""

CPU_MILLION = 110.0
"""
µs for a million multiplications forward and their gradients, in NumPy or on one thread of torch.

Measured 27 (1,024 wide, 16,384 rows) to 284 (256 wide, 512 rows, where the threads of OpenBLAS and of torch compete for the
cores). What matters is where both devices take equal time: between 37 million (512 wide, 64 rows: 4,302 µs on the CPU, 4,845
on the GPU) and 62 million (64 wide, 4,096 rows: 11,719 and 5,953); by the rule it is 40 million.
"""

GPU_ACTION = 900.0
"""µs: acting once with torch on the GPU, copies included: 828 with an MlpPolicy, 1,014 with a CnnPolicy."""

GPU_PASS = 4500.0
"""µs: a minibatch with torch on the GPU, besides the multiplications: 4,201 to 4,845 below 100 million of them."""

GPU_MILLION = 2.0
"""µs for a million multiplications and their gradients on the GPU: 0.5 (convolutions) to 2.5 (256 wide, 16,384 rows)."""

FORWARD = 1 / 3
"""Part of the multiplications of a minibatch that acting needs: no gradients of layers or of parameters."""

THREADS = 2 / 3
"""
The features extractors, which torch computes, are t to this power times as fast on t threads: 6.5 times on 16, the geometric
mean of the five products with 512 rows or more. The closed form in NumPy was no faster with 16 threads than with one.
"""

ENGINES_OF_THE_CPU = ("closed_form", "hybrid")
"""Engines that a user may choose and that run on the CPU only."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


class Machine(NamedTuple):
    """
    What the rule uses of the machine.

    :param has_gpu: whether torch can use a GPU of CUDA (or ROCm, which torch calls by that name)
    :param threads: number of threads that torch uses on the CPU
    """

    has_gpu: bool
    threads: int

    @classmethod
    def here(cls) -> "Machine":
        """
        This machine, as this process sees it.

        :return: its GPU and threads
        """
        return cls(th.cuda.is_available() and th.cuda.device_count() > 0, th.get_num_threads())


class Passes(NamedTuple):
    """
    Equal passes of an update, forward and backward.

    :param n: how many
    :param rows: transitions in each
    :param share: of the networks that take part: 1, or ½ where it is the actor or the critic alone
    """

    n: int
    rows: int
    share: float = 1.0

    @classmethod
    def over(cls, size: int, rows: int, times: int, share: float = 1.0) -> "Passes":
        """
        Several times over a rollout, in minibatches.

        :param size: transitions of the rollout
        :param rows: most in a minibatch
        :param times: how often
        :param share: as above
        :return: the passes
        """
        return cls(times * math.ceil(size / rows), min(rows, size), share)

    def of_at_most(self, rows: int) -> "Passes":
        """
        The same in smaller pieces.

        :param rows: most in a piece
        :return: the passes
        """
        return Passes.over(self.rows, rows, self.n, self.share)


class Iteration(NamedTuple):
    """
    How often one rollout and one update evaluate the networks.

    :param features: multiplications for one observation in the features extractors
    :param networks: in everything above them
    :param n_steps: steps of the environments, each with one forward pass
    :param n_envs: rows of such a pass
    :param update: the passes of the update
    """

    features: int
    networks: int
    n_steps: int
    n_envs: int
    update: Sequence[Passes]

    def cpu_time(self, threads: int) -> float:
        """
        Estimate the time on the CPU.

        :param threads: of torch
        :return: µs, without the environments
        """
        return self._time(CPU_ACTION, CPU_PASS, (self.features / threads**THREADS + self.networks) * CPU_MILLION / 1e6)

    def gpu_time(self) -> float:
        """
        Estimate the time on the GPU.

        :return: µs, without the environments
        """
        return self._time(GPU_ACTION, GPU_PASS, (self.features + self.networks) * GPU_MILLION / 1e6)

    def _time(self, action: float, one_pass: float, row: float) -> float:
        """
        The formula at the top of this file.

        :param action: µs for acting once
        :param one_pass: µs for a pass of an update
        :param row: µs for each of its rows
        :return: µs
        """
        update = sum(n * share * (one_pass + rows * row) for n, rows, share in self.update)
        return self.n_steps * (action + FORWARD * self.n_envs * row) + update


def check_name(device: th.device | str) -> None:
    """
    Look whether a name is a device's.

    :param device: "auto", or as torch takes it
    :raises ValueError: if it is none
    """
    try:
        th.device("cpu" if device == "auto" else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or a torch.device, got {device!r}") from error


def fastest(iteration: Iteration, machine: Machine) -> tuple[str, str]:
    """
    The faster device.

    :param iteration: how often the networks are evaluated
    :param machine: where
    :return: "cpu" or "cuda", and why, in a sentence without its full stop
    """
    if not machine.has_gpu:
        return "cpu", "there is no GPU"
    cpu, gpu = iteration.cpu_time(machine.threads), iteration.gpu_time()
    device, ratio, other = ("cpu", gpu / cpu, "GPU") if cpu <= gpu else ("cuda", cpu / gpu, "CPU")
    most = max((passes.rows for passes in iteration.update), default=iteration.n_envs)
    return device, (
        f"a training with {iteration.n_envs} environments, up to {most:,} rows at once and "
        f"{iteration.features + iteration.networks:,} multiplications a row would take an estimated "
        f"{ratio:.1f} times as long on the {other}"
    )


def multiplications(policy: nn.Module) -> tuple[int, int]:
    """
    Count the multiplications for one observation: every weight once, those of a convolution at each of its positions.

    Nothing is computed. The size of an image is followed through convolutions and pools in the order in which they were
    made, which is exact for a chain and an estimate for others.

    :param policy: actor and critic
    :return: in the features extractors, each counted once, and in everything else
    """
    extractors = [getattr(policy, f"{prefix}features_extractor", None) for prefix in ("", "pi_", "vf_")]
    seen: set[nn.Module] = set()
    image = _image_size(getattr(policy, "observation_space", None))
    features = sum(_count(extractor, image, seen)[0] for extractor in extractors if isinstance(extractor, nn.Module))
    return features, _count(policy, image, seen)[0]


def is_on_gpu(policy: nn.Module) -> bool:
    """
    Whether code of the policy's has put something on a GPU, be it a parameter or a plain attribute of a module.

    :param policy: just made
    :return: True if so
    """
    things: Iterable[object] = (thing for module in policy.modules() for thing in vars(module).values())
    things = [*policy.parameters(), *policy.buffers(), *things]
    return any(isinstance(thing, th.Tensor) and thing.device.type == "cuda" for thing in things)


def _count(module: nn.Module, image: tuple[int, ...], seen: set[nn.Module]) -> tuple[int, tuple[int, ...]]:
    """
    The multiplications of a module and all below it.

    :param module: of a policy
    :param image: size of the image that comes in, without its channels; empty for none
    :param seen: modules that were counted before, and those counted now
    :return: how many, and the size of the image that goes out
    """
    if module in seen:
        return 0, image
    seen.add(module)
    if isinstance(module, BaseFeaturesExtractor):
        image = _image_size(module._observation_space)
    total = 0
    if not isinstance(module, nn.Embedding):  # which selects rows
        total = sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter.dim() > 1)
    if isinstance(module, (*CONVOLUTIONS, *POOLS)):
        image = _size_after(module, image)
    if isinstance(module, CONVOLUTIONS):
        total *= math.prod(image)
    for child in module.children():
        of_child, image = _count(child, image, seen)
        total += of_child
    return total, image


def _image_size(space: object) -> tuple[int, ...]:
    """
    The size of the images in a space, the largest if there are several.

    :param space: of observations, channels first
    :return: without channels; empty if there is no image
    """
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    images = [part.shape[1:] for part in parts if isinstance(part, spaces.Box) and len(part.shape) > 1]
    return max(images, key=math.prod, default=())


def _size_after(module: nn.Module, image: tuple[int, ...]) -> tuple[int, ...]:
    """
    The size of an image after a convolution or a pool.

    :param module: with SB3's or torch's arguments
    :param image: size before it
    :return: size after it, at least 1 on every axis
    """

    def on_axis(name: str, axis: int, default: int) -> int:
        value = getattr(module, name, default)
        return int(value[axis]) if isinstance(value, (tuple, list)) else int(value)

    if isinstance(getattr(module, "padding", 0), str):  # "same" or "valid"
        return image
    after = []
    for axis, size in enumerate(image):
        reach = on_axis("dilation", axis, 1) * (on_axis("kernel_size", axis, 1) - 1)
        free = size + 2 * on_axis("padding", axis, 0) - reach - 1
        after.append(max(1, free // on_axis("stride", axis, 1) + 1))
    return tuple(after)
